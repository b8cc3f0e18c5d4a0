package worker

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// How long a drain waits before it leaves things to http.Server.Shutdown, which
// closes idle connections and drops requests that it has not read yet.
const (
	idleGrace    = time.Second     // for the next request of an idle connection
	requestGrace = 5 * time.Second // for a request to arrive whole
	drainPoll    = 2 * time.Millisecond
	standStill   = 50 * drainPoll // between two looks
)

// Serve runs an HTTP server on the connections that the master hands to this
// process; alone, it listens on srv.Addr. TLS is served when srv.TLSConfig has
// certificates. Serve sets srv's Handler, ConnState and ConnContext to functions
// that call those that were there. Behind a proxy it does what KeepClientsApart does.
//
// It returns nil after a drain: when the master says so or is gone, or at
// SIGTERM or SIGINT, no more connections are taken. Requests that are under way
// are answered, and told to close the connection. Idle connections are closed
// when they stay so for a second, in which the process runs. Hijacked ones, such as WebSockets, go on until
// they end: to make their clients leave, use srv.RegisterOnShutdown. Another
// signal during the drain ends it at once: connections are closed, hijacked ones
// when the process exits.
//
// After srv.Shutdown or srv.Close it returns http.ErrServerClosed at once, as
// package http does; after any other failure it drains and returns the error.
func Serve(srv *http.Server) error {
	ln, err := Listen(srv.Addr)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)
	return serve(srv, ln, signals)
}

func serve(srv *http.Server, ln *Listener, signals <-chan os.Signal) error {
	traffic := watch(srv, ln.Draining(), ln.back)
	KeepClientsApart(srv)
	served := make(chan error, 1)
	go func() { served <- serveOn(srv, ln) }()
	var failure error
	select {
	case failure = <-served:
		ln.Close()
	case <-signals:
		ln.Close()
		failure = <-served
	}
	switch {
	case failure == http.ErrServerClosed:
		return failure
	case errors.Is(failure, net.ErrClosed):
		failure = nil
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	traffic.awaitRequests(ctx)
	err := srv.Shutdown(ctx) // requests under way
	if err == nil {
		err = ln.Wait(ctx) // what was hijacked
	}
	if err != nil {
		srv.Close()
	}
	return failure
}

func serveOn(srv *http.Server, ln net.Listener) error {
	if t := srv.TLSConfig; t != nil && (len(t.Certificates) > 0 || t.GetCertificate != nil || t.GetConfigForClient != nil) {
		return srv.ServeTLS(ln, "", "")
	}
	return srv.Serve(ln)
}
