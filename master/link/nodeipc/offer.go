package nodeipc

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// offer is the message with which a connection is sent to a worker.
type offer struct {
	before, after string // of the number that the worker's answer names
	cluster       bool   // the worker accepts or refuses; otherwise it takes what arrives
}

// toServer offers to a server that listens, as Node's primary does (newconn).
func toServer(key string) offer {
	quoted, _ := json.Marshal(key) // a string never fails
	return offer{
		before:  fmt.Sprintf(`{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","act":"newconn","key":%s,"seq":`, quoted),
		after:   "}}\n",
		cluster: true,
	}
}

// Dialect says which message a program waits for that does not listen.
type Dialect int

// The dialects.
const (
	StickyListen  Dialect = iota // of sticky-listen, and of @socket.io/sticky: one message serves both
	StickySession                // of sticky-session
)

// dialectWords are what an upgrade passes on.
var dialectWords = []string{"sticky-listen", "sticky-session"}

// MarshalText returns the dialect's word.
func (d Dialect) MarshalText() ([]byte, error) { return []byte(dialectWords[d]), nil }

// UnmarshalText fails if the text is the word of no dialect.
func (d *Dialect) UnmarshalText(text []byte) error {
	i := slices.Index(dialectWords, string(text))
	if i < 0 {
		return fmt.Errorf("nodeipc: %q is no dialect", text)
	}
	*d = Dialect(i)
	return nil
}

// offer is for programs that wait for messages: one of sticky-listen by "msg", one of
// @socket.io/sticky by "type"; neither minds the other's words. One of sticky-session waits for
// a mere string. None has a place for a number, and none answers.
func (d Dialect) offer() offer {
	if d == StickySession {
		return offer{before: `{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"sticky:balance"}` + "\n"}
	}
	return offer{before: `{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"msg":"sticky:balance","payload":null,"type":"sticky:connection","data":""}}` + "\n"}
}

func (o *offer) append(text []byte, seq int64) []byte {
	text = slices.Grow(text, len(o.before)+maxDigits+len(o.after))
	text = append(text, o.before...)
	if o.cluster {
		text = strconv.AppendInt(text, seq, 10)
	}
	return append(text, o.after...)
}
