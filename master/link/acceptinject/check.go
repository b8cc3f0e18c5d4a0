package acceptinject

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/launch"
)

// ErrUnavailable: this machine cannot do it. The text says what is missing, and what else would
// work.
var ErrUnavailable = errors.New("servers that listen by themselves cannot be handed connections here")

// Check tries with a child whether this machine can do what this package needs, as the user that
// runs it. The error wraps ErrUnavailable.
func Check() error {
	if err := try(); err != nil {
		return fmt.Errorf("%w: %w; without it use --worker-link native or node, or find clients by their addresses, with --route kernel", ErrUnavailable, err)
	}
	return nil
}

// oldestKernel is the oldest whose calls are not interrupted between the addition of a descriptor and
// the answer (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV).
const oldestKernel = "5.19"

// try gives a child that accepts one connection to accept.
func try() error {
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer tcp.Close()
	conn, err := net.Dial("tcp4", tcp.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	file, err := conn.(*net.TCPConn).File() // a duplicate
	if err != nil {
		return err
	}
	defer file.Close()
	l, err := open(Config{
		Addresses: []netip.AddrPort{tcp.Addr().(*net.TCPAddr).AddrPort()},
		Readmit:   fdpass.CloseHandoffs,
	}, launch.ProbeAccept)
	if err != nil {
		return err
	}
	defer l.Close()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-l.Ready():
			if own, err := sock.Duplicate(file); err == nil {
				h := []fdpass.Handoff{{FD: own}}
				if n, _ := l.Deliver(h); n == 0 {
					unix.Close(own)
				}
			}
		case <-ended:
		}
	}()
	return l.Probe(tcp.Addr(), oldestKernel)
}
