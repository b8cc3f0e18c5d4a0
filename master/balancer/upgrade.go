package balancer

import (
	"os"
	"slices"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// SavedListener is a listener in a bundle.
type SavedListener struct{ FD int }

// SavedParked is a connection in a bundle that waits, or reads why it was refused.
type SavedParked struct {
	fdpass.Handoff
	Parked  time.Time
	Refused bool
}

// SaveListeners keeps the listeners that Serve accepts from.
func (b *Balancer) SaveListeners(bundle *reexec.Bundle) (all []SavedListener) {
	b.serving.Lock()
	defer b.serving.Unlock()
	for a := range b.acceptors {
		all = append(all, SavedListener{bundle.KeepFile(a.file)})
	}
	return all
}

// SaveParked keeps what is parked, or reads its refusal.
func (b *Balancer) SaveParked(bundle *reexec.Bundle) (all []SavedParked) {
	for _, p := range slices.Concat(b.lot.all(), b.overflow.all()) {
		bundle.Keep(p.FD)
		all = append(all, SavedParked{p.Handoff, p.parked, p.refused})
	}
	return all
}

// RestoreStats goes on with the counts of the program before.
func (b *Balancer) RestoreStats(s Stats) {
	b.accepted.Store(s.Accepted)
	b.handedOff.Store(s.HandedOff)
	b.takenBack.Store(s.TakenBack)
	b.refused.Store(s.Refused)
	b.gone.Store(s.Gone)
}

// ReadmitParked parks again what was parked in the program before. Patience begins anew.
func (b *Balancer) ReadmitParked(conns []SavedParked) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	var waiting []arrival
	for _, c := range conns {
		a := arrival{Handoff: c.Handoff, parked: c.Parked}
		if !c.Refused {
			waiting = append(waiting, a)
			continue
		}
		p, err := b.overflow.enter(a, place{slot: NoSlot}, maxOverflow)
		if err != nil {
			fdpass.CloseConnections(c.FD)
			continue
		}
		p.refused = true
		go b.linger(p, b.overflow, os.NewFile(uintptr(c.FD), "refused connection"), true)
	}
	for _, a := range b.identify(waiting, b.clients.Buffer()) {
		b.park(a)
	}
}
