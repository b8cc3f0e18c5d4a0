package worker

import (
	"context"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
)

// Client returns the address of a request's client: the one that the master places by.
// Under handfast run --behind-proxy that is what a trusted proxy says of it, else where
// the request came from. It is the zero Addr when that is no IP address.
func Client(r *http.Request) netip.Addr {
	rules, _ := rulesOfMaster()
	return clientOf(&rules, hash.Config{}, r).Addr
}

// rulesOfMaster are the master's, which it told this process by environment.
var rulesOfMaster = sync.OnceValues(func() (forwarded.Rules, error) {
	if _, ok := Self(); !ok {
		return forwarded.Rules{}, nil // alone
	}
	return forwarded.FromEnviron(os.Getenv)
})

// clientOf returns the client of a request, by the rule by which the master places its connection.
func clientOf(rules *forwarded.Rules, config hash.Config, r *http.Request) forwarded.Client {
	request := requestOf(rules, r)
	return request.Client(peerOf(r), config)
}

// requestOf returns what the head of a request says. Package http has read it, and has moved one of its lines.
func requestOf(rules *forwarded.Rules, r *http.Request) forwarded.Request {
	request := rules.Request()
	request.Target(r.RequestURI)
	for name, values := range r.Header {
		for _, value := range values {
			request.Header(name, value)
		}
	}
	request.Header("Host", r.Host)
	return request
}

// peerOf returns where a request came from.
func peerOf(r *http.Request) netip.Addr {
	if at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && at == unixLocal && r.RemoteAddr == unixPeer.String() {
		return fdpass.UnixPeer
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	peer, _ := netip.ParseAddr(host)
	return peer.Unmap()
}

// KeepClientsApart wraps the server's Handler, ConnContext and ConnState for a proxy that pools its
// connections. Such a proxy sends requests of several clients over one connection, of
// which only the first decided about the slot. A connection whose next request belongs to another slot is handed back to
// the master, which places it anew; the proxy notices nothing. Where that cannot be, because the request was read already
// (pipelining), or the master cannot do it, a request of another client is answered
// with "Connection: close", so that the proxy sends the next one over a connection that
// the master places anew; the first one is logged (srv.ErrorLog). What the master cannot read either, TLS that ends here and
// HTTP/2, it would place by the proxy's address again: such a connection stays, and the first one is logged.
//
// What came to a slot's own address (handfast run --slot-address) stays in that slot, whoever its clients are.
//
// Serve does it by itself. Without handfast run --behind-proxy it changes nothing. Servers other than package http's call
// Conn.ExpectRequest.
func KeepClientsApart(srv *http.Server) {
	rules, err := rulesOfMaster()
	if err != nil {
		logf(srv, "handfast: the master's environment: %v; clients that share a connection are not kept apart", err)
	}
	keepApart(srv, rules, hashOfMaster())
}

// placedKey finds a request's connection in its context, a *placed.
type placedKey struct{}

// placed is what is known of where a connection's requests belong.
type placed struct {
	look *look                    // nil: they are not looked at
	key  atomic.Pointer[hash.Key] // of the first request that was not
}

func keepApart(srv *http.Server, rules forwarded.Rules, config hash.Config) {
	if !rules.Looks() {
		return
	}
	handler, connContext, connState := srv.Handler, srv.ConnContext, srv.ConnState
	if handler == nil {
		handler = http.DefaultServeMux
	}
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if connContext != nil {
			ctx = connContext(ctx, c)
		}
		if at, ok := c.LocalAddr().(*net.TCPAddr); ok {
			if _, addressed := config.Slots.Slot(at.AddrPort().Addr()); addressed {
				return ctx // the address decides, not who the client is
			}
		}
		return context.WithValue(ctx, placedKey{}, &placed{look: lookOf(c)})
	}
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if l := lookOf(c); l != nil {
			l.follow(state)
		}
		if connState != nil {
			connState(c, state)
		}
	}
	var logOnce, logUnreadable sync.Once
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := r.Context().Value(placedKey{}).(*placed)
		switch {
		case !ok || !p.isElsewhere(&rules, config, r):
		case r.TLS != nil || r.ProtoMajor > 1:
			logUnreadable.Do(func() {
				logf(srv, "handfast: the proxy at %s sends requests of several clients over TLS or HTTP/2, which handfast cannot read: all are in the slot of the proxy's address; "+
					"have it speak HTTP/1.1 without TLS to handfast, or send PROXY headers (--proxy-protocol), or choose the slot itself (--slot-address)", r.RemoteAddr)
			})
		default:
			w.Header().Set("Connection", "close")
			logOnce.Do(func() {
				logf(srv, "handfast: the proxy at %s sends requests of several clients over one connection, "+
					"of which only the first decides about the slot, since connections are not handed back here; such connections are now closed, "+
					"but better turn off the proxy's pool (examples/proxies/README.md, A proxy that pools its connections)", r.RemoteAddr)
			})
		}
		handler.ServeHTTP(w, r)
	})
}

// isElsewhere tells whether a request belongs to another slot, or may, since its client is another one than that of the
// connection's first request.
func (p *placed) isElsewhere(rules *forwarded.Rules, config hash.Config, r *http.Request) bool {
	looked := p.look != nil && r.ProtoMajor == 1
	if looked && p.look.begun() {
		if len(rules.Sessions) > 0 {
			request := requestOf(rules, r)
			p.look.back.adopted.add(&request, p.look.back.route)
		}
		return false
	}
	request := requestOf(rules, r)
	if looked && p.look.back.slots.Load() > 0 {
		_, elsewhere := p.look.back.isElsewhere(&request, peerOf(r))
		return elsewhere
	}
	key := request.Client(peerOf(r), config).Key
	return !p.key.CompareAndSwap(nil, &key) && *p.key.Load() != key
}

// lookOf returns how the requests of a server's connection are looked at; nil: they are not.
func lookOf(c net.Conn) *look {
	if conn, ok := c.(*Conn); ok { // not TLS over it
		return conn.look
	}
	return nil
}

// follow does what a change of the connection's state in package http is reason for.
func (l *look) follow(state http.ConnState) {
	switch state {
	case http.StateNew:
		l.http = true
	case http.StateIdle:
		if l.served.Load() { // by HTTP/1
			l.conn.ExpectRequest()
		}
	case http.StateHijacked:
		l.hijacked()
	}
}

func logf(srv *http.Server, format string, args ...any) {
	if srv.ErrorLog != nil {
		srv.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}
