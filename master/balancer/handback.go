package balancer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
)

// ErrForeign: a worker hands back what it cannot have been handed. It is the worker's fault.
var ErrForeign = errors.New("balancer: what was handed back is no connection of ours")

// Returner is a Worker that may hand connections back between two requests.
type Returner interface {
	Worker
	// Looks tells whether it looks at requests before it hands a connection back, also at the first one of a connection
	// with fdpass.FlagUnplaced. One that does not hands each connection back between two requests.
	Looks() bool
	// Drains tells whether it is handed nothing more.
	Drains() bool
}

// returns has what it takes to place connections that were handed back. It serves one call at a time.
type returns struct {
	router router
	batch  []connection
	peek   []byte
}

func (b *Balancer) newReturns() *returns {
	return &returns{router: b.newRouter(), batch: make([]connection, 0, fdpass.MaxBatch), peek: b.clients.Buffer()}
}

// HandBack takes ownership of the first n of conns, which the worker of a slot has between two requests, and
// places them as if they had just come, by the head of the next request. It does not wait. What else is known of a connection
// (fdpass.Handoff) comes with it. err, an ErrForeign, says why the next one is none that the worker was handed: the caller still
// owns that and those behind it, and ends the worker's link.
//
// A connection on which nothing of a request is there, from a worker that drains, goes to any other worker that looks at its
// first request. A connection that belongs to the worker which has handed it back is delivered again after a retry
// delay: so nothing goes to and fro for ever without pause, whatever workers do.
func (b *Balancer) HandBack(slot int, from Returner, conns []fdpass.Handoff) (n int, err error) {
	reexec.Lock.MustHold()
	r := b.returns.Get().(*returns)
	defer b.returns.Put(r)
	r.batch = r.batch[:0]
	for n < len(conns) {
		h := conns[n]
		if err = b.checkReturned(&h); err != nil {
			break
		}
		r.batch = append(r.batch, connection{Handoff: h})
		n++
	}
	b.ledger.wereHandedBack(slot, n)
	known := b.identifyEach(r.batch, r.peek, func(c connection) { b.placeIdle(c, slot, from) })
	if from.Looks() { // else it has not seen what comes next
		r.router.from = from
	}
	r.router.route(known)
	r.router.from = nil
	clear(r.batch)
	return n, err
}

// checkReturned tells whether this is a connection at one of our addresses or Unix sockets, and makes it what the master's are:
// non-blocking, its peer known. A connection that its client has ended meanwhile is one, too.
func (b *Balancer) checkReturned(h *fdpass.Handoff) error {
	local, unknown := sock.Local(h.FD)
	if unknown == nil && !local.IsValid() {
		return b.checkSocket(h)
	}
	protocol, err := sock.Option(h.FD, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP {
		return fmt.Errorf("%w: it is no TCP socket", ErrForeign)
	}
	if unknown != nil || !b.isOurs(local) {
		return fmt.Errorf("%w: it is at %v", ErrForeign, local)
	}
	peer, err := sock.Peer(h.FD)
	if err != nil {
		err = checkConnected(h.FD)
	}
	if err == nil {
		err = sock.SetNonblock(h.FD)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForeign, err)
	}
	*h = b.believe(*h, peer, false)
	return nil
}

// checkSocket is checkReturned for what has no IP address.
func (b *Balancer) checkSocket(h *fdpass.Handoff) error {
	err := checkConnected(h.FD)
	switch {
	case err != nil:
	case !b.isOurSocket(h.FD):
		err = errors.New("it is no TCP socket, and no Unix socket of ours")
	default:
		err = sock.SetNonblock(h.FD)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForeign, err)
	}
	*h = b.believe(*h, netip.AddrPort{}, true)
	return nil
}

func checkConnected(fd int) error {
	if listens, err := sock.Option(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens != 0 {
		return errors.New("it is a listener")
	}
	return nil
}

// isOurSocket tells whether a connection came to a Unix socket of ours.
func (b *Balancer) isOurSocket(fd int) bool {
	all, name := b.names.Load(), sock.Name(fd)
	return all != nil && name != "" && slices.Contains(*all, name)
}

// addName is addAddress for what a Unix socket is bound to.
func (b *Balancer) addName(name string) {
	b.serving.Lock()
	defer b.serving.Unlock()
	var all []string
	if known := b.names.Load(); known != nil {
		all = slices.Clone(*known)
	}
	if !slices.Contains(all, name) {
		all = append(all, name)
		b.names.Store(&all)
	}
}

// isOurs tells whether connections can have come to an address.
func (b *Balancer) isOurs(local netip.AddrPort) bool {
	all := b.addresses.Load()
	return all != nil && slices.ContainsFunc(*all, func(at netip.AddrPort) bool {
		return at == local || at.Port() == local.Port() && at.Addr().IsUnspecified()
	})
}

// addAddress notes where connections come to. It is not forgotten when no more come: those that are there may be handed back.
func (b *Balancer) addAddress(at netip.AddrPort) {
	b.serving.Lock()
	defer b.serving.Unlock()
	var all []netip.AddrPort
	if known := b.addresses.Load(); known != nil {
		all = slices.Clone(*known)
	}
	if !slices.Contains(all, at) {
		all = append(all, at)
		b.addresses.Store(&all)
	}
}

// placeIdle takes ownership of a connection on which nothing of a request is there.
func (b *Balancer) placeIdle(c connection, slot int, from Returner) {
	seats := b.table.load()
	for i := 0; i < len(seats) && from.Drains(); i++ {
		at := (slot + i) % len(seats)
		to, ok := seats[at].worker.(Returner)
		if !ok || to == from || !to.Looks() || to.Drains() {
			continue
		}
		unplaced := c
		unplaced.Flags |= fdpass.FlagUnplaced
		if b.deliverTo(to, at, &unplaced) == nil {
			return
		}
	}
	b.keepIdle(c)
}

// waitAgain is waitForSlot for a connection that its worker has just handed back.
func (b *Balancer) waitAgain(p *parked) {
	pause := time.NewTimer(b.cfg.RetryDelay)
	select {
	case <-pause.C:
	case <-b.draining.Done():
		pause.Stop()
	}
	b.waitForSlot(p)
}
