package admin

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// guests is a listener that has a bounded number of connections open. When there are as many, a new one
// takes the place of the one that has asked for nothing for the longest time: whoever just holds
// connections cannot keep others out. One whose request is being answered stays, so if all are, the new one
// waits.
type guests struct {
	net.Listener
	most int

	mu     sync.Mutex
	open   map[*guest]struct{}
	change *sync.Cond // signalled when somebody leaves or may be sent away, and at the end
	closed bool
}

// guest is one connection. What follows is guarded by the lock of all.
type guest struct {
	net.Conn
	of    *guests
	since time.Time // when it has come, or has got its last answer
	busy  bool      // its request is being answered
}

func newGuests(ln net.Listener, most int) *guests {
	g := &guests{Listener: ln, most: most, open: make(map[*guest]struct{})}
	g.change = sync.NewCond(&g.mu)
	return g
}

// Accept implements net.Listener.
func (g *guests) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.open) >= g.most && !g.closed {
		if longest := g.longest(); longest != nil {
			delete(g.open, longest)
			longest.Conn.Close()
			continue
		}
		g.change.Wait()
	}
	if g.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	one := &guest{Conn: conn, of: g, since: time.Now()}
	g.open[one] = struct{}{}
	return one, nil
}

// longest returns the guest who has asked for nothing for the longest time; nil: all are being answered.
func (g *guests) longest() (longest *guest) {
	for one := range g.open {
		if !one.busy && (longest == nil || one.since.Before(longest.since)) {
			longest = one
		}
	}
	return longest
}

// Close implements net.Listener.
func (g *guests) Close() error {
	g.mu.Lock()
	g.closed = true
	g.change.Broadcast()
	g.mu.Unlock()
	return g.Listener.Close()
}

// Close implements net.Conn.
func (one *guest) Close() error {
	one.of.mu.Lock()
	delete(one.of.open, one)
	one.of.change.Broadcast()
	one.of.mu.Unlock()
	return one.Conn.Close()
}

// is notes whether the guest's request is being answered.
func (one *guest) is(busy bool) {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	one.busy = busy
	if !busy {
		one.since = time.Now()
		one.of.change.Broadcast()
	}
}

// guestKey is that of a request's guest in its context.
type guestKey struct{}

// host has a server know its guests.
func host(srv *http.Server) {
	answer := srv.Handler
	srv.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, guestKey{}, conn)
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if one, ok := r.Context().Value(guestKey{}).(*guest); ok {
			one.is(true)
		}
		answer.ServeHTTP(w, r)
	})
	srv.ConnState = func(conn net.Conn, state http.ConnState) {
		if one, ok := conn.(*guest); ok && state == http.StateIdle { // the answer has been written
			one.is(false)
		}
	}
}
