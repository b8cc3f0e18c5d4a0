package bindswap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

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

// newListener finds out where a listening socket is bound.
func newListener(file *os.File) (*listener, error) {
	inode, err := listening.Inode(file)
	if err != nil {
		return nil, fmt.Errorf("bindswap: listener: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("bindswap: listener: %w", err)
	}
	ln := &listener{file: file, inode: inode}
	var name unix.Sockaddr
	var only int
	raw.Control(func(fd uintptr) {
		name, err = unix.Getsockname(int(fd))
		only, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	})
	switch at := name.(type) {
	case *unix.SockaddrInet4:
		ln.AddrPort = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	case *unix.SockaddrInet6:
		ln.AddrPort = netip.AddrPortFrom(netip.AddrFrom16(at.Addr).Unmap(), uint16(at.Port))
		ln.OnlyIPv6 = only != 0
	default:
		return nil, fmt.Errorf("bindswap: %s is no TCP listener: %w", file.Name(), err)
	}
	return ln, nil
}

// yieldsTo tells whether another listener, of IPv4, serves in place of this one of both
// families.
func (ln *listener) yieldsTo(other *listener) bool {
	return ln.Addr() == netip.IPv6Unspecified() && !ln.OnlyIPv6 &&
		other.Addr() == netip.IPv4Unspecified() && other.Port() == ln.Port()
}

// serves tells whether a listener is where a server binds, or, for IPv4, on both families.
func (ln *listener) serves(bound netip.AddrPort) bool {
	return ln != nil && (ln.AddrPort == bound || bound.Addr().Is4() && ln.Addr().Is6() && ln.Addr().IsUnspecified())
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

// forIPv4 returns what to give to a socket of IPv4 where the listener that fits is of IPv6: one
// of IPv4 alone if that can be had. Accept fills the address of an IPv6 client, also of a mapped
// one, into room for an IPv4 client's: Python, for one, then shows the wrong one.
func (l *Link) forIPv4(both *listener) *listener {
	if l.ipv4 == nil {
		l.WarnOnce("the worker listens on IPv4 only, and will see wrong addresses of its clients; give --listen an IPv4 address",
			"listen", both.String())
		return both
	}
	file, err := l.ipv4(both.file)
	var ln *listener
	if err == nil {
		ln, err = newListener(file)
	}
	if err != nil {
		l.WarnOnce("no listener for IPv4 alone, the worker will see wrong addresses of its clients", "err", err)
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

// took notes that a thread's process has a listener.
func (l *Link) took(ln *listener, tid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.taken = true
	l.AddRoot(tid)
}

// Accepts tells whether a server of the worker has the slot's listener on this address.
func (l *Link) Accepts(addr netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.listeners, func(ln *listener) bool { return ln.taken && ln.AddrPort == addr })
}

// Served tells whether a server of the worker has one of the slot's listeners.
func (l *Link) Served() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.listeners, func(ln *listener) bool { return ln.taken })
}

// isOurs tells whether a socket is one of the slot's.
func (l *Link) isOurs(inode uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.listeners, func(ln *listener) bool { return ln.inode == inode })
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
