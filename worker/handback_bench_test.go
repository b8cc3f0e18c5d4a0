package worker

import (
	"io"
	"net/http"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
)

// BenchmarkHandBack is a worker's part of a pooled connection's way to another slot and back: it is handed off with a request, which is
// answered, and handed back with the next one.
func BenchmarkHandBack(b *testing.B) {
	master, file, err := fdpass.Pair()
	fdtest.Check(b, err)
	defer master.Close()
	back, err := openHandBack(file, testRules(b), hash.DefaultConfig(), Place{Slot: 0, Slots: 2})
	fdtest.Check(b, err)
	source, err := newMailboxSource(file, back)
	fdtest.Check(b, err)
	ln := &Listener{source: source, back: back, draining: make(chan struct{}), idle: make(chan struct{})}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })}
	keepApart(srv, testRules(b), hash.DefaultConfig())
	go serve(srv, ln, nil)
	client, fd := fdtest.Connection(b)
	defer client.Close()
	here, there, answer := []byte(request(0, "/", "")), []byte(request(1, "/", "")), make([]byte, 4096)
	m := fdpass.Message{Handoffs: []fdpass.Handoff{{FD: fd}}}
	b.ReportAllocs()
	for b.Loop() {
		client.Write(here)
		h := m.Handoffs[0]
		fdtest.Check(b, master.TrySend(fdpass.TypeHandoff, m.Handoffs))
		unix.Close(h.FD)
		if _, err := client.Read(answer); err != nil {
			b.Fatal(err)
		}
		client.Write(there)
		for m.Type = 0; m.Type != fdpass.TypeHandBack || len(m.Handoffs) == 0; {
			fdtest.Check(b, master.Receive(&m))
		}
		if _, err := unix.Read(m.Handoffs[0].FD, answer); err != nil {
			b.Fatal(err)
		}
	}
	fdpass.CloseHandoffs(m.Handoffs)
}
