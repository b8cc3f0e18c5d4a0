package kernelroute

import (
	"slices"
	"time"
)

// task is what the master does about a listener, and for which slot's clients.
type task struct {
	action action
	slot   int
}

// updateAcceptors makes the master do what the rule says, at all listeners.
func (r *Route) updateAcceptors() {
	for _, b := range r.berths {
		for _, g := range r.groups {
			r.updateAcceptor(b, g)
		}
	}
	for _, g := range r.groups {
		if listener := g.Absent(); listener != nil && !r.acceptors.runs(listener) {
			r.acceptors.start(listener, r.refuser.AcceptShared) // which resets them
		}
	}
}

// updateAcceptor does so at one listener, unless the master does that already.
func (r *Route) updateAcceptor(b *berth, g Group) {
	next := task{rule(r.situationAt(b, g)), b.slot}
	if before, known := b.doing[g]; known && before == next {
		return
	}
	b.doing[g] = next
	if loop := r.loopFor(next, b, g); loop != nil {
		r.acceptors.start(g.Listener(b.number), loop)
	} else {
		r.acceptors.stop(g.Listener(b.number))
	}
}

// situationAt returns what the rule looks at.
func (r *Route) situationAt(b *berth, g Group) situation {
	now := situation{slot: slotNone, accepts: b.accepts[g], handsOff: r.handsOff, leased: len(b.leases) > 0, used: b.used}
	switch slot := slices.Index(r.berthOf, b); {
	case slot < 0:
	case r.filled[slot] == nil:
		now.slot = slotEmpty
	default:
		now.slot = slotFilled
	}
	return now
}

// loopFor returns the loop that does a task; nil: there is nothing to do.
func (r *Route) loopFor(t task, b *berth, g Group) acceptLoop {
	switch t.action {
	case acceptNow:
		return r.balancer.AcceptShared
	case acceptLater:
		return acceptLoop(r.balancer.AcceptShared).after(queueTime)
	case refuseNow:
		return r.refuser.RefuseOverdue(r.tick, func(waiting int) int { return waiting })
	case refuseOverdue:
		return r.refuser.RefuseOverdue(r.tick, func(waiting int) int { return r.overdue(t.slot, b, g, waiting) })
	default:
		return nil
	}
}

// overdue returns how many of the connections that wait at a listener have waited for longer than they may. Where no slot's clients
// come any more all have come before that was so, whatever slot they belong to now.
func (r *Route) overdue(slot int, b *berth, g Group, waiting int) int {
	r.mu.Lock()
	left := b.left
	r.mu.Unlock()
	switch {
	case left.IsZero():
		return r.clock.overdue(g.Bound(), slot, r.patience)
	case time.Since(left) >= r.patience:
		return waiting
	default:
		return 0
	}
}
