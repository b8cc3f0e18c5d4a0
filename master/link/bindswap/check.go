package bindswap

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/handfast/handfast/master/link/launch"
)

// ErrUnavailable: this machine cannot do it. The text says what is missing, and what else would
// work.
var ErrUnavailable = errors.New("servers that bind the port themselves cannot be given the slot's listener here")

// remedy is what else would work.
const remedy = "without it use --worker-link activation if the server can take an inherited socket (LISTEN_FDS), node or native, or --route master"

// Check tries with a child whether this machine can do what this package needs, as the user that
// runs it. The error says which part it cannot, and wraps ErrUnavailable.
func Check() error {
	if err := try(); err != nil {
		return fmt.Errorf("%w: %w; %s", ErrUnavailable, err, remedy)
	}
	return nil
}

// oldestKernel is the oldest that can add descriptors to a process (SECCOMP_IOCTL_NOTIF_ADDFD).
const oldestKernel = "5.9"

// try gives a child that binds a port a listener on it.
func try() error {
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer tcp.Close()
	file, err := tcp.File()
	if err != nil {
		return err
	}
	defer file.Close()
	l, err := open(Config{Listeners: []*os.File{file}}, launch.Probe)
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Probe(tcp.Addr(), oldestKernel)
}
