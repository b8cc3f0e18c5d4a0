package admin

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// boundedListener is a listener that has a bounded number of connections open. When there are as many, a new one
// takes the place of the one that has been idle for the longest time: clients that only hold
// connections cannot keep others out. One whose request is being answered stays, so if all are, the new one
// waits.
type boundedListener struct {
	net.Listener
	most int

	mu     sync.Mutex
	open   map[*boundedConn]struct{}
	change *sync.Cond // signalled when a connection ends or becomes idle, and at the end
	closed bool
}

// boundedConn is one connection. The lock of its listener guards its fields.
type boundedConn struct {
	net.Conn
	of    *boundedListener
	since time.Time // it is idle: it was accepted then, or got its last answer
	busy  bool      // its request is being answered
}

func newBoundedListener(ln net.Listener, most int) *boundedListener {
	g := &boundedListener{Listener: ln, most: most, open: make(map[*boundedConn]struct{})}
	g.change = sync.NewCond(&g.mu)
	return g
}

// Accept implements net.Listener.
func (g *boundedListener) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.open) >= g.most && !g.closed {
		if longest := g.longestIdle(); longest != nil {
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
	one := &boundedConn{Conn: conn, of: g, since: time.Now()}
	g.open[one] = struct{}{}
	return one, nil
}

// longestIdle returns the connection that has been idle for the longest time; nil: all are being answered.
func (g *boundedListener) longestIdle() (longest *boundedConn) {
	for one := range g.open {
		if !one.busy && (longest == nil || one.since.Before(longest.since)) {
			longest = one
		}
	}
	return longest
}

// Close implements net.Listener.
func (g *boundedListener) Close() error {
	g.mu.Lock()
	g.closed = true
	g.change.Broadcast()
	g.mu.Unlock()
	return g.Listener.Close()
}

// Close implements net.Conn.
func (one *boundedConn) Close() error {
	one.of.mu.Lock()
	delete(one.of.open, one)
	one.of.change.Broadcast()
	one.of.mu.Unlock()
	return one.Conn.Close()
}

// setBusy notes whether the connection's request is being answered.
func (one *boundedConn) setBusy(busy bool) {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	one.busy = busy
	if !busy {
		one.since = time.Now()
		one.of.change.Broadcast()
	}
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// trackRequests has a server say which connections are busy.
func trackRequests(srv *http.Server) {
	answer := srv.Handler
	srv.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, conn)
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if one, ok := r.Context().Value(connKey{}).(*boundedConn); ok {
			one.setBusy(true)
		}
		answer.ServeHTTP(w, r)
	})
	srv.ConnState = func(conn net.Conn, state http.ConnState) {
		if one, ok := conn.(*boundedConn); ok && state == http.StateIdle { // the answer has been written
			one.setBusy(false)
		}
	}
}
