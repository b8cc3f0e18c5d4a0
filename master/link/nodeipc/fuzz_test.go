package nodeipc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/handfast/handfast/fdpass/sock"
)

// FuzzHeard: whatever a worker sends, in whatever parts, and whenever it ends, each of its
// connections is given back once, or closed once.
func FuzzHeard(f *testing.F) {
	ack, taken := "{\"cmd\":\"NODE_HANDLE_ACK\"}\n", "{\"cmd\":\"NODE_CLUSTER\",\"ack\":%d,\"accepted\":%v}\n"
	for _, text := range []string{
		"",
		ack + ack,
		ack + "{\"cmd\":\"NODE_HANDLE_NACK\"}\n" + ack,
		fmt.Sprintf(taken+taken+taken+taken, 2, true, 3, false, 2, true, 3, true),
		fmt.Sprintf(queryFor, 1, port) + "\n" + "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"close\",\"key\":\"null:8080:4:undefined:0\"}\n",
		"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"exitedAfterDisconnect\",\"seq\":3}\n" + ack,
		"{\"cmd\":\"disconnect\"}\n{\"cmd\":\"ready\"}\n" + ack + ack + ack,
		"{\"cmd\":\"NODE_HANDLE\"}\n\n[]\nnull\n{\"cmd\":7}\n",
	} {
		for _, server := range []bool{true, false} {
			f.Add([]byte(text), server, uint8(5))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, server bool, size uint8) {
		if listensElsewhere(text) {
			t.Skip("it would open files and ports")
		}
		l, w, r := openLink(t, ReadyAuto)
		if server {
			w.listens()
		}
		hs, clients := connect(t, 8)
		deliver(t, l, hs)
		for part := range slices.Chunk(text, max(1, int(size))) {
			w.say(string(part))
		}
		if size%2 == 0 {
			l.Drain()
		}
		w.Close()
		l.Close()

		back := make(map[uint64]bool)
		for _, h := range r.all {
			inode, err := sock.InodeFD(h.FD)
			if err != nil || back[inode] {
				t.Errorf("connection %v was given back and closed, or given back twice", h.Client)
			}
			back[inode] = true
		}
		for i, c := range clients {
			if c.ended() == back[c.inode] {
				t.Errorf("connection %d: given back %v, closed %v", i, back[c.inode], c.ended())
			}
		}
	})
}

// listensElsewhere tells whether a worker that sends this listens on something of its own.
func listensElsewhere(text []byte) bool {
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		var m message
		json.Unmarshal(line, &m)
		if m.Act == "queryServer" && m.Port != port {
			return true
		}
		if kind := m.kind(); m.Act == "queryServer" && kind != "4" && kind != "6" {
			return true
		}
	}
	return false
}
