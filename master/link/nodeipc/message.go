package nodeipc

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// message is what we read of a worker's message. A program may send anything that JSON
// can say; what is no object, or has other types in these places, is its own affair.
type message struct {
	Cmd      string `json:"cmd"`
	Act      string `json:"act"`
	Seq      int64  `json:"seq"`
	Ack      *int64 `json:"ack"`
	Accepted bool   `json:"accepted"`
	Key      string `json:"key"`
	Type     string `json:"type"` // a word of sticky-session or @socket.io/sticky
	query
	Msg struct {
		Cmd string `json:"cmd"`
	} `json:"msg"` // what a descriptor is sent with

	Source       string `json:"source"`       // of a message to other workers (relay.go)
	UID          string `json:"uid"`          // which of the sender's adapters speaks
	RequesterUID string `json:"requesterUid"` // whom it answers
}

// query is what a worker wants to listen on.
type query struct {
	Address     *string         `json:"address"` // nil: all addresses; a path when Port is -1
	Port        int             `json:"port"`
	AddressType json.RawMessage `json:"addressType"` // 4, 6, -1 for a path, "udp4" or "udp6"
	FD          json.RawMessage `json:"fd"`
	Index       int             `json:"index"` // tells servers of one worker on one address apart
	Data        json.RawMessage `json:"data"`  // TLS ticket keys, which all workers must share; or a session's name
	Flags       int             `json:"flags"`
}

// The words of the channel.
const (
	cmdCluster = "NODE_CLUSTER"
	cmdHandle  = "NODE_HANDLE"
	cmdAck     = "NODE_HANDLE_ACK"
	cmdNack    = "NODE_HANDLE_NACK"

	// Words of Node about sockets that a worker has sent (lib/internal/socket_list.js).
	cmdNotifyClose = "NODE_SOCKET_NOTIFY_CLOSE" // tell me when they are closed
	cmdAllClosed   = "NODE_SOCKET_ALL_CLOSED"
	cmdGetCount    = "NODE_SOCKET_GET_COUNT" // how many are open?
	cmdCount       = "NODE_SOCKET_COUNT"

	// cmdHandBack is our own word, of preload.cjs. Without a descriptor it is a worker's question whether it is to hand
	// connections back, and the master's answer that it is.
	cmdHandBack = "NODE_HANDFAST_HAND_BACK"

	cmdReady      = "ready"      // recluster's: the worker takes connections
	cmdDisconnect = "disconnect" // recluster's: the worker wants to be replaced, or is to drain

	typeSession    = "sticky:connection" // of @socket.io/sticky: a session has begun
	typeSessionEnd = "sticky:disconnection"
)

// inherited tells whether it is a descriptor that the worker wants to listen on.
func (q *query) inherited() bool {
	fd := string(q.FD)
	return fd != "" && fd != "null" && fd != "-1" // a socket for datagrams has -1
}

func (q *query) kind() string { return trimQuotes(q.AddressType) }

func trimQuotes(raw json.RawMessage) string {
	text := string(raw)
	if unquoted, err := strconv.Unquote(text); err == nil {
		return unquoted
	}
	return text
}

// key tells listeners apart, as Node's primary does.
func (q *query) key() string {
	address := "null"
	if q.Address != nil {
		address = *q.Address
	}
	fd := "undefined"
	if len(q.FD) > 0 {
		fd = string(q.FD)
	}
	return fmt.Sprintf("%s:%d:%s:%s:%d", address, q.Port, q.kind(), fd, q.Index)
}

// sockname is what a server's address() says.
type sockname struct {
	Address string `json:"address"`
	Family  string `json:"family"`
	Port    int    `json:"port"`
}

// reply answers a queryServer.
type reply struct {
	Cmd      string          `json:"cmd"`
	Ack      int64           `json:"ack"`
	Key      string          `json:"key"`
	Errno    int             `json:"errno,omitempty"` // negative, as libuv's
	Sockname *sockname       `json:"sockname,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"`
	Seq      int64           `json:"seq"`
}

// socketsReply answers for the sockets of one server that a worker has sent.
type socketsReply struct {
	Cmd   string `json:"cmd"`
	Key   string `json:"key"`
	Count *int   `json:"count,omitempty"`
}

// line is a message as it is sent.
func line(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // only our own types
	}
	return append(text, '\n')
}
