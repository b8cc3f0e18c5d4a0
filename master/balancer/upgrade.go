package balancer

import (
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// SavedListener is a listener in a bundle.
type SavedListener struct {
	FD    int
	Path  string `json:",omitempty"` // of a Unix socket
	Stays bool   `json:",omitempty"` // Path does when it is closed: somebody else has made it
}

// SavedParked is a connection in a bundle that waits, is idle, or reads why it was refused.
type SavedParked struct {
	fdpass.Handoff
	Parked  time.Time
	Refused bool
	Idle    bool // it is between two requests
}

// SaveListeners keeps the listeners that Serve accepts from.
func (b *Balancer) SaveListeners(bundle *reexec.Bundle) (all []SavedListener) {
	b.serving.Lock()
	defer b.serving.Unlock()
	for a := range b.acceptors {
		saved := SavedListener{FD: bundle.KeepFile(a.file)}
		if a.name != nil {
			saved.Path, saved.Stays = a.name.Path(), !a.name.IsOurs()
		}
		all = append(all, saved)
	}
	return all
}

// SaveParked keeps what is parked, idle, or reads its refusal.
func (b *Balancer) SaveParked(bundle *reexec.Bundle) (all []SavedParked) {
	for _, i := range b.idlers.all() {
		bundle.Keep(i.FD)
		all = append(all, SavedParked{Handoff: i.Handoff, Parked: i.since, Idle: true})
	}
	for _, p := range slices.Concat(b.waitlist.all(), b.refuser.overflow.all()) {
		bundle.Keep(p.FD)
		all = append(all, SavedParked{p.Handoff, p.since, p.refused, false})
	}
	return all
}

// Addresses returns those that connections may have come to.
func (b *Balancer) Addresses() []netip.AddrPort {
	if all := b.addresses.Load(); all != nil {
		return *all
	}
	return nil
}

// RestoreAddresses has connections that came to these addresses be known as ours, too.
func (b *Balancer) RestoreAddresses(all []netip.AddrPort) {
	for _, at := range all {
		b.addAddress(at)
	}
}

// Names returns what Unix sockets are bound to that connections may have come to.
func (b *Balancer) Names() []string {
	if all := b.names.Load(); all != nil {
		return *all
	}
	return nil
}

// RestoreNames is RestoreAddresses for Unix sockets.
func (b *Balancer) RestoreNames(all []string) {
	for _, name := range all {
		b.addName(name)
	}
}

// RestoreStats goes on with the counts of the program before.
func (b *Balancer) RestoreStats(s Stats) { b.ledger.restore(s) }

// ReadmitParked parks again what was parked in the program before, and keeps what was idle. Patience begins anew.
func (b *Balancer) ReadmitParked(conns []SavedParked) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	var waiting []connection
	for _, saved := range conns {
		c := connection{Handoff: saved.Handoff, since: saved.Parked}
		switch {
		case saved.Refused:
			b.refuser.resume(c)
		case saved.Idle:
			c.since = time.Time{}
			b.keepIdle(c)
		default:
			waiting = append(waiting, c)
		}
	}
	for _, c := range b.identify(waiting, b.clients.Buffer()) {
		b.park(c)
	}
}

// resume takes ownership of a connection that has its answer, and lets the client read it.
func (r *refuser) resume(c connection) {
	p, err := r.overflow.enter(c, waitKey{slot: NoSlot}, maxOverflow)
	if err != nil {
		fdpass.CloseConnections(c.FD)
		return
	}
	p.refused = true
	go r.linger(p, r.overflow, os.NewFile(uintptr(c.FD), "refused connection"), true)
}
