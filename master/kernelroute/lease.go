package kernelroute

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/supervisor"
)

// Lease is the right of a worker to a berth, until its process has ended: listeners that are its own
// on each address of the Route. The files are borrowed until the Route is closed. A nil *Lease is that of
// a worker which has none.
type Lease struct {
	route *Route
	berth *berth
	slot  int
	link  Link // nil: it is not made yet, or the worker is one that the program before was about to end
	pid   int  // 0: it was not started yet
	over  bool // the worker was told to end, or overtaken, so it will not be ready
}

// listener is a berth's listener on one address.
type listener struct {
	*os.File // borrowed
	addr     netip.AddrPort
}

func (l *Lease) listeners() (all []listener) {
	if l == nil {
		return nil
	}
	r := l.route
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.groups {
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

// Idle tells whether no connection waits for the worker to accept, and none can be about to come.
func (l *Lease) Idle() bool {
	r, b := l.route, l.berth
	r.mu.Lock()
	defer r.mu.Unlock()
	return (b.left.IsZero() || time.Since(b.left) > handshakeTime) && r.queued(b) == 0
}

// Follows tells whether the Route listens where workers do.
func (l *Lease) Follows() bool { return l.route.follows }

// grant gives the next worker of a slot a berth. If the slot is empty, new clients wait there from now on.
func (r *Route) grant(slot int) (*Lease, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := r.choose(slot)
	if err != nil {
		return nil, err
	}
	if slot < len(r.berthOf) && r.filled[slot] == nil && r.berthOf[slot] != b {
		r.moveSlot(slot, b)
		r.steer()
	}
	if len(b.leases) == 0 && !slices.Contains(r.berthOf, b) {
		b.used, b.left = false, time.Time{}
	}
	if len(b.leases) == 0 {
		b.warned, b.queue = nil, queueWatch{}
	}
	for _, berth := range r.berths { // who has no process yet was overtaken, and no event has said so
		for _, other := range berth.leases {
			other.over = other.over || other.slot == slot && other.pid == 0
		}
	}
	l := &Lease{route: r, berth: b, slot: slot}
	b.slot = slot
	b.leases = append(b.leases, l)
	r.updateAcceptors()
	return l, nil
}

// choose returns the berth for a slot's next worker: the one that the slot's clients come to, with all that wait there,
// if the slot is empty; otherwise one that nobody has. If no other can be opened the worker shares the slot's.
func (r *Route) choose(slot int) (*berth, error) {
	isEmpty := slot < len(r.berthOf) && r.filled[slot] == nil
	if isEmpty && r.isFit(r.berthOf[slot]) {
		return r.berthOf[slot], nil
	}
	b, err := r.vacant(slot)
	if err != nil && slot < len(r.berthOf) && !r.berthOf[slot].spoiled {
		r.log.Warn("a worker shares its slot's listener with the one that it replaces, since no other can be opened", "slot", slot, "err", err)
		return r.berthOf[slot], nil
	}
	return b, err
}

// OpenLink grants a worker a lease and makes its link.
func (r *Route) OpenLink(seat supervisor.Seat, open func(*Lease) (Link, error)) (Link, error) {
	l, err := r.grant(seat.Slot)
	if err != nil {
		return nil, err
	}
	link, err := open(l) // without our lock, since it asks for the listeners
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.release(l)
		return nil, err
	}
	l.link = link
	return link, nil
}

// leaseOf returns the lease of a worker, found by its link or else by its process; nil: it has none.
func (r *Route) leaseOf(link supervisor.Link, pid int) *Lease {
	for _, b := range r.berths {
		for _, l := range b.leases {
			if link != nil && l.link == link || pid != 0 && l.pid == pid {
				return l
			}
		}
	}
	return nil
}

// release ends a lease, whose worker has ended or was never started.
func (r *Route) release(l *Lease) {
	b := l.berth
	b.leases = slices.DeleteFunc(b.leases, func(other *Lease) bool { return other == l })
	if len(b.leases) == 0 && !b.spoiled {
		r.clean(b)
	}
	r.updateAcceptors()
}

// RestoreLink makes the link of a worker of the program before, whose lease Restore has put back. Workers that were not ready have no link any
// more: the program before has told them to end.
func (r *Route) RestoreLink(pid int, restore func(*Lease) (Link, error)) (Link, error) {
	r.mu.Lock()
	l := r.leaseOf(nil, pid)
	r.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("kernelroute: worker %d has no listener: that cannot be", pid)
	}
	link, err := restore(l) // without our lock, since it asks for the listeners
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l.link, l.over = link, false
	return link, nil
}
