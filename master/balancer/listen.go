package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// Listen opens a listener whose connections inherit what a server wants of them:
// TCP_NODELAY and keep-alive, with the intervals that Go's own listeners set.
//
// ":80" listens on all addresses of both families, "0.0.0.0:80" on all of IPv4
// and "[::]:80" on all of IPv6.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	return ListenWith(ctx, address, func(int) error { return nil })
}

// Address returns the address that a listener is known by (sock.Listening); the zero AddrPort if it is none of TCP.
func Address(ln net.Listener) (at netip.AddrPort) {
	if tcp, ok := ln.(*net.TCPListener); ok {
		sock.Control(tcp, func(fd int) (err error) { at, err = sock.Listening(fd); return err })
	}
	return at
}

// ListenWith is Listen with a socket that is prepared before it is bound: by fdpass.SetFreebind, sock.BindToLoopback, or both.
func ListenWith(ctx context.Context, address string, prepare func(fd int) error) (net.Listener, error) {
	config := fdpass.ListenConfig()
	options := config.Control
	config.Control = func(network, address string, raw syscall.RawConn) error {
		return errors.Join(sock.ControlRaw(raw, prepare), options(network, address, raw))
	}
	ln, err := config.Listen(ctx, fdpass.ListenNetwork(address), address)
	if err != nil {
		return nil, fmt.Errorf("balancer: %w", err)
	}
	return ln, nil
}
