package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// firstListenFD is the first descriptor that a service manager passes
// (SD_LISTEN_FDS_START, man 3 sd_listen_fds).
const firstListenFD = 3

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
		var err error
		raw.Control(func(fd uintptr) { err = fdpass.SetFreebind(int(fd)) })
		return errors.Join(err, options(network, address, raw))
	}
	return listen(ctx, address, config)
}

func listen(ctx context.Context, address string, config net.ListenConfig) (net.Listener, error) {
	ln, err := config.Listen(ctx, fdpass.ListenNetwork(address), address)
	if err != nil {
		return nil, fmt.Errorf("master: %w", err)
	}
	return ln, nil
}

// Inherited returns the listeners that a service manager such as systemd opened
// for this process, none when there are none; the caller owns them. Call it once,
// before the process opens descriptors of its own.
func Inherited() ([]net.Listener, error) {
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if pid != os.Getpid() {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return nil, fmt.Errorf("master: LISTEN_FDS=%q: want a number of descriptors", os.Getenv("LISTEN_FDS"))
	}
	var lns []net.Listener
	for fd := firstListenFD; fd < firstListenFD+n; fd++ {
		ln, err := inherit(fd)
		if err != nil {
			for _, ln := range lns {
				ln.Close()
			}
			return nil, err
		}
		lns = append(lns, ln)
	}
	return lns, nil
}

func inherit(fd int) (net.Listener, error) {
	unix.CloseOnExec(fd)
	file := os.NewFile(uintptr(fd), "inherited listener")
	defer file.Close() // the listener is a duplicate
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("master: inherited descriptor %d: %w", fd, err)
	}
	if _, ok := ln.(*net.TCPListener); !ok {
		ln.Close()
		return nil, fmt.Errorf("master: inherited descriptor %d is not a TCP listener; use ListenStream= with a port", fd)
	}
	return ln, nil
}
