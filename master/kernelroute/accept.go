package kernelroute

import (
	"slices"
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
func (r *Route) updateAcceptor(b *berth, g group) {
	next := task{rule(r.situationAt(b, g)), b.slot}
	if before, known := b.doing[g]; known && before == next {
		return
	}
	b.doing[g] = next
	if loop := r.loopFor(next, g); loop != nil {
		r.acceptors.start(g.Listener(b.number), loop)
	} else {
		r.acceptors.stop(g.Listener(b.number))
	}
}

// situationAt returns what the rule looks at.
func (r *Route) situationAt(b *berth, g group) situation {
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
func (r *Route) loopFor(t task, g group) acceptLoop {
	switch t.action {
	case acceptNow:
		return r.balancer.AcceptShared
	case acceptLater:
		return acceptLoop(r.balancer.AcceptShared).after(queueTime)
	case refuseNow:
		return r.refuser.RefuseOverdue(r.tick, func(waiting int) int { return waiting })
	case refuseOverdue:
		return r.refuser.RefuseOverdue(r.tick, func(int) int { return r.clock.overdue(g.Bound(), t.slot, r.patience) })
	default:
		return nil
	}
}
