package bindswap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/listening"
)

// listener is one of the slot's listening sockets.
type listener struct {
	foreign.Address
	file     *os.File // borrowed
	inode    uint64
	taken    bool // a server has it
	replaced bool // a listener of IPv4 alone serves in its place
}

// newListener finds out where a listening socket is bound. It borrows the file until the link is closed.
func newListener(file *os.File) (*listener, error) {
	ln := &listener{file: file}
	err := sock.Control(file, func(fd int) (err error) {
		if ln.inode, err = sock.InodeFD(fd); err != nil {
			return err
		}
		if ln.AddrPort, err = sock.Listening(fd); err != nil {
			return err
		}
		only, _ := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		ln.OnlyIPv6 = only != 0
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listener of a slot: %w", err)
	}
	if !ln.IsValid() {
		return nil, fmt.Errorf("%s is no TCP listener", file.Name())
	}
	return ln, nil
}

// yieldsTo tells whether another listener, of IPv4, serves in place of this one of both
// families.
func (ln *listener) yieldsTo(other *listener) bool {
	return ln.Addr() == netip.IPv6Unspecified() && !ln.OnlyIPv6 &&
		other.Addr() == netip.IPv4Unspecified() && other.Port() == ln.Port()
}

// isAt tells whether a listener is where a server binds, or, for IPv4, on both families.
func (ln *listener) isAt(bound netip.AddrPort) bool {
	return ln.AddrPort == bound || bound.Addr().Is4() && ln.Addr().Is6() && ln.Addr().IsUnspecified()
}

// choose returns the listener that fits an address best, or nil.
func (l *Link) choose(bound foreign.Address) *listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	var best *listener
	for _, ln := range l.listeners {
		if ln.Fit(bound) > 0 && (best == nil || ln.Fit(bound) > best.Fit(bound)) {
			best = ln
		}
	}
	return best
}

// onlyIPv4 returns what to give to a socket of IPv4 where the listener that fits is of IPv6: a listener
// of IPv4 alone if there can be one. Accept writes the address of an IPv6 client, also of a mapped
// one, into the room for an IPv4 client's: Python, for one, then shows the wrong one.
func (l *Link) onlyIPv4(both *listener) *listener {
	if l.ipv4 == nil {
		l.WarnOnce("a worker listens on IPv4 only, and will see wrong addresses of its clients", "listen", both.String(),
			"remedy", "give --listen an IPv4 address")
		return both
	}
	file, err := l.ipv4(both.file)
	var ln *listener
	if err == nil {
		ln, err = newListener(file)
	}
	if err != nil {
		l.WarnOnce("no listener for IPv4 alone: a worker will see wrong addresses of its clients", "err", err)
		return both
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	both.replaced = true
	l.listeners = append(l.listeners, ln)
	return ln
}

// followError is why the balancer cannot listen where a server does.
type followError struct {
	at  netip.AddrPort
	err error
}

func (e *followError) Error() string { return e.err.Error() }

// errno is what the server is told.
func (e *followError) errno() unix.Errno {
	var errno unix.Errno
	if errors.As(e.err, &errno) {
		return errno
	}
	return unix.EADDRNOTAVAIL
}

// followTo has the balancer listen where a server does, and returns the slot's listener there. It
// returns nil where it does not.
func (l *Link) followTo(bound netip.AddrPort, onlyIPv6 bool) (*listener, error) {
	file, err := l.follow(bound, onlyIPv6)
	if err == nil && file == nil {
		return nil, nil
	}
	var ln *listener
	if err == nil {
		ln, err = newListener(file)
	}
	if err != nil {
		return nil, &followError{bound, err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listeners = append(l.listeners, ln)
	return ln, nil
}

// markTaken notes that a thread's process has a listener.
func (l *Link) markTaken(ln *listener, tid int) {
	l.AddRoot(tid)
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.taken = true
}

// awaited returns the sockets that the worker must wait on in order to be ready; none until
// it has taken one.
func (l *Link) awaited() []listening.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []listening.Listener
	some := false
	for _, ln := range l.listeners {
		some = some || ln.taken
		if ln.taken || !ln.replaced {
			all = append(all, listening.Listener{Inode: ln.inode, Addr: ln.AddrPort})
		}
	}
	if !some {
		return nil
	}
	return all
}
