package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	return listen(ctx, address, fdpass.ListenConfig())
}

// ListenFree is Listen also for an address that this machine does not have yet (IP_FREEBIND).
func ListenFree(ctx context.Context, address string) (net.Listener, error) {
	config := fdpass.ListenConfig()
	options := config.Control
	config.Control = func(network, address string, raw syscall.RawConn) error {
		return errors.Join(sock.ControlRaw(raw, fdpass.SetFreebind), options(network, address, raw))
	}
	return listen(ctx, address, config)
}

func listen(ctx context.Context, address string, config net.ListenConfig) (net.Listener, error) {
	ln, err := config.Listen(ctx, fdpass.ListenNetwork(address), address)
	if err != nil {
		return nil, fmt.Errorf("balancer: %w", err)
	}
	return ln, nil
}
