package worker

import (
	"context"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
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

// clientOf returns the client of a request, by the rule by which the master places its connection. Package http has
// read the head, and has moved one of its lines.
func clientOf(rules *forwarded.Rules, config hash.Config, r *http.Request) forwarded.Client {
	request := rules.Request()
	for name, values := range r.Header {
		for _, value := range values {
			request.Header(name, value)
		}
	}
	request.Header("Host", r.Host)
	return request.Client(peerOf(r), config)
}

// peerOf returns where a request came from.
func peerOf(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	peer, _ := netip.ParseAddr(host)
	return peer.Unmap()
}

// KeepClientsApart wraps the server's Handler, and ConnContext, for a proxy that pools its
// connections. Such a proxy sends requests of several clients over one connection, of
// which only the first decided about the slot. A request of another client is answered
// with "Connection: close", so that the proxy sends the next one over a connection that
// the master places anew; the first one is logged (srv.ErrorLog).
//
// Serve does it by itself. Without handfast run --behind-proxy it changes nothing.
func KeepClientsApart(srv *http.Server) {
	rules, err := rulesOfMaster()
	if err != nil {
		logf(srv, "handfast: the master's environment: %v; clients that share a connection are not kept apart", err)
	}
	keepApart(srv, rules, prefixes())
}

// prefixes are how many bits of an address tell clients apart, as the master says.
func prefixes() hash.Config {
	config := hash.DefaultConfig()
	for name, bits := range map[string]*int{fdpass.EnvIPv4Prefix: &config.IPv4Prefix, fdpass.EnvIPv6Prefix: &config.IPv6Prefix} {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			*bits = n
		}
	}
	return config
}

// placedKey finds in a request's context the key by which its connection was placed.
type placedKey struct{}

func keepApart(srv *http.Server, rules forwarded.Rules, config hash.Config) {
	if rules.Header == "" {
		return
	}
	handler, connContext := srv.Handler, srv.ConnContext
	if handler == nil {
		handler = http.DefaultServeMux
	}
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if connContext != nil {
			ctx = connContext(ctx, c)
		}
		return context.WithValue(ctx, placedKey{}, new(atomic.Pointer[hash.Key]))
	}
	var logOnce sync.Once
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if placed, ok := r.Context().Value(placedKey{}).(*atomic.Pointer[hash.Key]); ok {
			now := clientOf(&rules, config, r).Key
			if !placed.CompareAndSwap(nil, &now) && *placed.Load() != now {
				w.Header().Set("Connection", "close")
				logOnce.Do(func() {
					logf(srv, "handfast: the proxy at %s sends requests of several clients over one connection, "+
						"of which only the first decides about the slot; such connections are now closed, "+
						"but better turn off the proxy's pool (README, Behind a proxy)", r.RemoteAddr)
				})
			}
		}
		handler.ServeHTTP(w, r)
	})
}

func logf(srv *http.Server, format string, args ...any) {
	if srv.ErrorLog != nil {
		srv.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}
