package main

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// openSockets opens WebSockets to a handler.
func openSockets(t *testing.T, n int, handle http.HandlerFunc) *loadResult {
	l := load{to: serveHTTP(t, handle), exchange: webSocketExchange, clients: 3, concurrency: 4, duration: time.Minute, total: n, keep: true}
	held, err := l.run(t.Context())
	t.Cleanup(func() { held.closeKept() })
	if err != nil || held.failed > 0 || len(held.latencies) != n {
		t.Fatalf("%d of %d opened, error %v, %v", len(held.latencies), n, err, held.err)
	}
	return &held
}

// Every connection has its turn, and what a well-kept library returns is what is expected.
func TestTalk(t *testing.T) {
	count := make(chan string, 1e6)
	held := openSockets(t, 20, func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		for {
			kind, message, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			if len(message) != 64 || message[63] != 63 || kind != websocket.MessageBinary {
				t.Errorf("a message of kind %v: %x", kind, message)
			}
			count <- r.RemoteAddr
			conn.Write(r.Context(), kind, message)
		}
	})
	for range 2 {
		result, err := held.talk(t.Context(), messageExchange, 6, 100*time.Millisecond)
		if err != nil || result.failed > 0 || len(result.latencies) == 0 || result.inTime > len(result.latencies) {
			t.Fatalf("%d messages, %d in time, %d failures (%v), error %v",
				len(result.latencies), result.inTime, result.failed, result.err, err)
		}
		seen := map[string]int{}
		for range result.latencies {
			seen[<-count]++
		}
		if len(result.latencies) >= 40 && len(seen) != 20 {
			t.Errorf("messages by connection: %v, want 20 to have some", seen)
		}
	}
	if n := held.closeKept(); n != 0 {
		t.Errorf("%d connections were disturbed", n)
	}
	held.kept = nil
}

// A connection on which something else returns, or that ends, fails once.
func TestTalkFails(t *testing.T) {
	held := openSockets(t, 8, func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		kind, message, _ := conn.Read(r.Context())
		message[10]++
		conn.Write(r.Context(), kind, message)
	})
	result, err := held.talk(t.Context(), messageExchange, 4, time.Minute)
	if err != nil || result.failed != 8 || len(result.latencies) != 0 || !strings.Contains(result.err.Error(), "unexpected answer") {
		t.Errorf("%d messages, %d failures (%v), error %v", len(result.latencies), result.failed, result.err, err)
	}
}

// An answer of another worker than the request had before is counted.
func TestTalkMisplaced(t *testing.T) {
	var answers atomic.Int64
	address := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerWorker, strconv.FormatInt(100+answers.Add(1)%7/6, 10)) // the 6th is 101
		io.WriteString(w, "ok\n")
	})
	open := load{to: address, exchange: shortExchange, clients: 1, concurrency: 1, duration: time.Minute, total: 1, keep: true}
	held, err := open.run(t.Context())
	defer held.closeKept()
	if err != nil {
		t.Fatal(err)
	}
	for d := 50 * time.Millisecond; ; d *= 2 { // a busy machine makes few requests in the time
		answers.Store(0)
		result, err := held.talk(t.Context(), shortExchange, 1, d)
		n := len(result.latencies)
		if err != nil || result.failed > 0 || result.misplaced < n/7 || result.misplaced > n/7+1 {
			t.Fatalf("%d requests, %d in the wrong slot, %d failures (%v), error %v", n, result.misplaced, result.failed, result.err, err)
		}
		if n >= 10 {
			break
		}
	}
}
