package kernelroute

import (
	"slices"

	"github.com/handfast/handfast/master/reuseport"
)

// task is what the master does about a listener, and for the clients of which slot.
type task struct {
	action action
	slot   int
}

// updateAcceptors has the master do about all listeners what the rule says.
func (s *Route) updateAcceptors() {
	for _, b := range s.berths {
		for _, g := range s.groups {
			s.updateAcceptor(b, g)
		}
	}
}

// updateAcceptor does so for one listener, if it does something else there.
func (s *Route) updateAcceptor(b *berth, g *reuseport.Group) {
	next := task{rule(s.situationAt(b, g)), b.slot}
	if before, known := b.doing[g]; known && before == next {
		return
	}
	b.doing[g] = next
	if loop := s.loopFor(next, g); loop != nil {
		s.acceptors.start(g.Listener(b.number), loop)
	} else {
		s.acceptors.stop(g.Listener(b.number))
	}
}

func (s *Route) situationAt(b *berth, g *reuseport.Group) situation {
	now := situation{slot: slotNone, accepts: b.accepts[g], handsOff: s.handsOff, leased: len(b.leases) > 0, used: b.used}
	switch slot := slices.Index(s.at, b); {
	case slot < 0:
	case s.filled[slot] == nil:
		now.slot = slotEmpty
	default:
		now.slot = slotFilled
	}
	return now
}

// loopFor returns how the master accepts; nil: it does not.
func (s *Route) loopFor(t task, g *reuseport.Group) acceptLoop {
	switch t.action {
	case acceptNow:
		return s.balancer.AcceptShared
	case acceptLater:
		return acceptLoop(s.balancer.AcceptShared).after(queueTime)
	case refuseNow:
		return s.refuser.RefuseOverdue(s.tick, func(waiting int) int { return waiting })
	case refuseOverdue:
		return s.refuser.RefuseOverdue(s.tick, func(int) int { return s.clock.overdue(g.Addr(), t.slot, s.patience) })
	default:
		return nil
	}
}
