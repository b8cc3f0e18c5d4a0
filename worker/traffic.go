package worker

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// traffic knows what the connections of an http.Server are doing, so that a drain
// loses no request. The server's own Shutdown would: it drops, without an answer,
// a request that it finishes reading after Shutdown was called
// (net/http, conn.serve), and closes idle connections on which the next request
// may be under way.
type traffic struct {
	draining <-chan struct{}
	back     *handBack
	count    [phases]atomic.Int64
}

// phase is what one connection is doing.
type phase int32

const (
	gone     phase = iota // closed or hijacked: no longer the server's
	arriving              // a request is expected or being read
	busy                  // a handler has the request
	idle                  // between requests
	phases
)

// connKey finds the connection in a request's context.
type connKey struct{}

// watch makes a server report what its connections do, and tell clients to leave
// once draining is closed.
func watch(srv *http.Server, draining <-chan struct{}, back *handBack) *traffic {
	t := &traffic{draining: draining, back: back}
	handler, connState, connContext := srv.Handler, srv.ConnState, srv.ConnContext
	if handler == nil {
		handler = http.DefaultServeMux
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(connKey{}).(net.Conn)
		if c != nil {
			t.move(c, busy)
		}
		select {
		case <-t.draining:
			if !lookOf(c).leaves() {
				w.Header().Set("Connection", "close")
			}
		default:
		}
		handler.ServeHTTP(w, r)
	})
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew, http.StateActive:
			t.move(c, arriving)
		case http.StateIdle:
			t.move(c, idle)
		default:
			t.move(c, gone)
		}
		if connState != nil {
			connState(c, state)
		}
	}
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if connContext != nil {
			ctx = connContext(ctx, c)
		}
		return context.WithValue(ctx, connKey{}, c)
	}
	return t
}

func (t *traffic) move(c net.Conn, to phase) {
	if wrapped, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = wrapped.NetConn()
	}
	if conn, ok := c.(*Conn); ok {
		from := phase(conn.phase.Swap(int32(to)))
		t.count[from].Add(-1)
		t.count[to].Add(1)
	}
}

// awaitRequests waits until no request is about to be lost, within its bounds. Time in which this process stood still (SIGSTOP, a machine with
// too much to do) does not count, and behind it there is some left: requests have come meanwhile that nobody has read yet.
func (t *traffic) awaitRequests(ctx context.Context) {
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	var waited time.Duration
	for last := time.Now(); ctx.Err() == nil; <-poll.C {
		now := time.Now()
		if step := now.Sub(last); step < standStill {
			waited += step
		} else {
			waited = max(0, waited-standStill)
		}
		last = now
		if t.back.pending() {
			continue
		}
		expected := t.count[arriving].Load() > 0 && waited < requestGrace
		idling := t.count[idle].Load() > 0 && waited < idleGrace
		if !expected && !idling {
			return
		}
	}
}
