package supervisor

import (
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
)

// endOldest ends the oldest workers of those slots of which more linger or drain than may. Numbers of slots count: one that was removed and
// is there again is the same. Slots are counted apart, and not generations, since drains of single slots leave workers, too, which are of
// the same generation.
func (s *Supervisor) endOldest() {
	if s.cfg.MaxDraining == 0 || s.stopping { // when all stop, they are not in the way of others
		return
	}
	bySlot := make(map[int][]*worker)
	for w := range s.workers {
		if w.state == Lingering || w.state == Draining {
			bySlot[w.seat.Slot] = append(bySlot[w.seat.Slot], w)
		}
	}
	for _, all := range bySlot {
		slices.SortFunc(all, func(a, b *worker) int { return a.started.Compare(b.started) })
		for len(all) > s.cfg.MaxDraining {
			w := all[0]
			all = all[1:]
			s.logLater(hclog.Info, "worker is ended before its time: of its slot more workers linger and drain than may", "slot", w.seat.Slot, "pid", w.pid(),
				"generation", w.seat.Generation, "state", w.state.String(), "most", s.cfg.MaxDraining, "left", time.Until(w.deadline).Round(time.Second).String(),
				"change_with", "--max-draining")
			s.terminate(w)
		}
	}
}

// drainTimeout is how long the worker of a seat may linger and drain when it was replaced: DrainTimeout, and less by its share of
// DrainSpread. So the workers of a generation, which have been replaced together, do not all end at the same time. The shares of slots are as
// far from each other as can be, and workers of slot 0 have the whole time.
func (s *Supervisor) drainTimeout(seat Seat) time.Duration {
	share := float64(seat.Slot) / float64(max(seat.Slots, seat.Slot+1))
	return s.cfg.DrainTimeout - time.Duration(float64(s.cfg.DrainSpread)*share)
}
