package kernelroute

import (
	"net/netip"
	"os"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// Lease is the right of a worker to a berth, until its process has ended: listeners that are its own
// on each address of the Route. The files are borrowed until the Route is closed. A nil *Lease is that of
// a worker which has none.
type Lease struct {
	route *Route
	berth *berth
	slot  int
	link  Link // nil: of a worker that the program before was about to end
	pid   int  // 0: it was not started yet
	over  bool // it was told to end: it will not be ready
}

// listener is one of a berth's.
type listener struct {
	*os.File // borrowed
	addr     netip.AddrPort
}

func (l *Lease) listeners() (all []listener) {
	if l == nil {
		return nil
	}
	s := l.route
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		all = append(all, listener{g.Listener(l.berth.number), g.Addr().AddrPort()})
	}
	return all
}

// Listener returns the worker's listener on one address, or nil.
func (l *Lease) Listener(addr netip.AddrPort) *os.File {
	for _, ln := range l.listeners() {
		if ln.addr == addr {
			return ln.File
		}
	}
	return nil
}

// Files returns the worker's listeners.
func (l *Lease) Files() (files []*os.File) {
	for _, ln := range l.listeners() {
		files = append(files, ln.File)
	}
	return files
}

// Offer returns the worker's listeners as they are offered to it (fdpass.TypeListen).
func (l *Lease) Offer() (offer []fdpass.Handoff) {
	for _, ln := range l.listeners() {
		h := fdpass.Handoff{FD: -1, Client: ln.addr}
		sock.Control(ln.File, func(fd int) error { h.FD = fd; return nil })
		offer = append(offer, h)
	}
	return offer
}

// Idle tells whether nobody waits for the worker to accept, nor can be about to.
func (l *Lease) Idle() bool {
	s, b := l.route, l.berth
	s.mu.Lock()
	defer s.mu.Unlock()
	return (b.left.IsZero() || time.Since(b.left) > handshakeTime) && s.queued(b) == 0
}

// Follows tells whether the Route listens where workers do.
func (l *Lease) Follows() bool { return l.route.follows }
