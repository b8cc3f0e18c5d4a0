package nodeipc

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

func TestGolden(t *testing.T) {
	reexectest.Golden(t, part, savedPrimary{
		LastID: 7, Data: map[string]json.RawMessage{"key": json.RawMessage(`"data"`)}, Shared: map[string]int{"key": 8},
		Names: []savedName{{Dir: 9, Base: "socket", Dev: 1, Ino: 2}},
	})
	address := netip.MustParseAddrPort("127.0.0.1:8080")
	file := &savedFile{Shared: "key", Own: address}
	handoff := savedWaiting{fdpass.Handoff{FD: 10, Client: netip.MustParseAddrPort("192.0.2.1:1234"), Flags: 1, Details: "\x00\xff"}, time.Date(2026, 11, 26, 12, 0, 0, 5_000_000, time.UTC)}
	came := 11
	reexectest.Golden(t, linkPart, saved{
		Channel: 7, Came: &came, ID: 3, Seq: 4, Dialect: StickySession, Half: []byte(`{"cmd"`), Skip: true,
		Servers:  []savedServer{{Key: "key", Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Of: address}},
		Sessions: []string{"session"}, Joined: true, UIDs: []string{"uid"},
		Shut: true, Paused: true, Over: true, Drained: true, Missed: 5, Left: "it hung up",
		Rest: []byte("rest"), Answers: []savedAnswer{{Text: []byte("answer"), File: file}}, Relayed: [][]byte{[]byte("relayed")},
		Queue:  []savedWaiting{handoff},
		Flight: []savedSent{{Seq: 6, Handoff: &handoff, Taken: true, Cluster: true, File: file, Answer: reply{Cmd: "NODE_CLUSTER", Ack: 1, Key: "key", Errno: -98, Sockname: &sockname{Address: "127.0.0.1", Family: "IPv4", Port: 8080}, Data: json.RawMessage(`"data"`), Seq: 2}}},
		Lost:   []savedSent{{Seq: 7, Handoff: &handoff, Taken: true, Cluster: true, File: file, Answer: reply{Cmd: "NODE_CLUSTER", Ack: 1, Key: "key", Errno: -98, Sockname: &sockname{Address: "127.0.0.1", Family: "IPv4", Port: 8080}, Data: json.RawMessage(`"data"`), Seq: 2}}},
	})
}
