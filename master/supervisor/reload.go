package supervisor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
)

// reload is one rolling replacement of all workers.
type reload struct {
	generation int
	began      time.Time
	slot       int  // whose new worker is being waited for
	saidNoRoom bool // it waits for room for a process, and that was logged
	waiting    []chan error
}

// startReload begins a reload, or queues one behind the reload in progress: that
// one may have started workers before whatever changed since. Several requests
// made meanwhile become one.
func (s *Supervisor) startReload(result chan error) error {
	if s.reload != nil {
		s.queued = append(s.queued, result)
		return nil
	}
	s.beginReload([]chan error{result})
	return nil
}

// startReplace starts a worker to take over from the one in a slot, or joins a replacement that is in progress.
func (s *Supervisor) startReplace(slot int, result chan error) error {
	if slot < 0 || slot >= len(s.slots) {
		return fmt.Errorf("%w %d; there are 0 to %d", ErrNoSlot, slot, len(s.slots)-1)
	}
	sl := s.slots[slot]
	switch {
	case s.reload != nil:
		return ErrReloading
	case sl.current == nil:
		return fmt.Errorf("%w: slot %d", ErrEmpty, slot)
	case sl.next != nil:
		sl.next.waiting = append(sl.next.waiting, result)
		return nil
	case sl.standby != nil:
		sl.current.waiting = append(sl.current.waiting, result)
		return nil
	}
	if err := s.roomForOne(); err != nil {
		return err
	}
	if err := sl.checkStart(); err != nil {
		return fmt.Errorf("supervisor: slot %d keeps what it had: %w", slot, err)
	}
	s.spawn(sl, sl.generation)
	sl.next.waiting = append(sl.next.waiting, result)
	return nil
}

// replyWaiting answers the requests that wait for a worker's start. why is nil if the worker has taken its slot over.
func (s *Supervisor) replyWaiting(w *worker, why error) {
	if why != nil && len(w.waiting) > 0 {
		why = fmt.Errorf("supervisor: slot %d keeps what it had: %w%s", w.seat.Slot, why, quoteLastWords(why))
	}
	for _, result := range w.waiting {
		s.answer(result, why)
	}
	w.waiting = nil
	if w.recycles {
		s.recycled(w, why)
	}
}

// roomForOne tells whether another process may run.
func (s *Supervisor) roomForOne() error {
	if most := s.cfg.MaxProcesses; most > 0 && len(s.workers) >= most {
		return s.errNoRoom()
	}
	return nil
}

func (s *Supervisor) beginReload(waiting []chan error) {
	s.generation++
	s.reload = &reload{generation: s.generation, began: time.Now(), waiting: waiting}
	s.emit(s.reload.event(Reloading, nil))
	s.stepReload()
}

// stepReload starts the next new worker of the reload in progress, if there is
// one and it does not wait for a worker already.
func (s *Supervisor) stepReload() {
	r := s.reload
	if r == nil {
		return
	}
	for ; r.slot < len(s.slots); r.slot++ {
		sl := s.slots[r.slot]
		if sl.current.isOf(r.generation) {
			continue // also a slot that was added during the reload
		}
		if sl.next.isOf(r.generation) || s.fillEarly(sl) { // which goes on from there
			return
		}
		if err := s.roomForOne(); err != nil {
			s.noRoom(sl, err)
			return
		}
		if err := sl.checkStart(); err != nil { // what is being started goes on: an empty slot has nobody else
			s.failReload(sl.number, err)
			return
		}
		s.cancelNext(sl, errOvertaken) // it was started before the reload
		s.spawn(sl, r.generation)
		return
	}
	if s.onProbation() {
		return
	}
	s.emit(r.event(Reloaded, nil))
	s.endReload(nil)
}

// onProbation tells whether somebody stands by.
func (s *Supervisor) onProbation() bool {
	return slices.ContainsFunc(s.slots, func(sl *slot) bool { return sl.standby != nil })
}

// noRoom waits for workers that stand by, since they end soon; if there are none, the reload fails.
func (s *Supervisor) noRoom(sl *slot, why error) {
	r := s.reload
	switch {
	case !s.onProbation():
		s.failReload(sl.number, why)
	case !r.saidNoRoom:
		r.saidNoRoom = true
		s.logLater(hclog.Warn, "reload waits for room for another worker process, until workers have lasted for their probation", "slot", sl.number,
			"generation", r.generation, "processes", len(s.workers), "probation", s.cfg.Probation.String())
	}
}

// standBy has a worker that was replaced wait while its successor is on probation.
func (s *Supervisor) standBy(w *worker, probation time.Duration) {
	if probation <= 0 {
		s.linger(w)
		return
	}
	w.enter(Standby, probation)
	w.slot.standby = w
	s.emit(w.event(WorkerStandby))
}

// endProbation: the worker in a slot has lasted for its probation, or need not. The one before it is not needed for that any more.
func (s *Supervisor) endProbation(sl *slot) {
	if w := sl.standby; w != nil {
		sl.standby = nil
		s.linger(w)
		s.replyWaiting(sl.current, nil)
	}
}

// restoreStandby gives a slot back to the worker that stands by. The caller sees to the one that was there.
func (s *Supervisor) restoreStandby(sl *slot) {
	w := sl.standby
	w.enter(Serving, 0)
	s.startPinging(w)
	s.startHealth(w)
	sl.standby, sl.current, sl.generation = nil, w, w.seat.Generation
	s.fill(sl)
	s.emit(w.event(WorkerRestored))
}

// reloadFailed ends the reload when w is one of its workers: the one that was
// waited for, or one that was ready and did not last until the end of the reload.
func (s *Supervisor) reloadFailed(w *worker, why error) {
	if r := s.reload; r != nil && w.isOf(r.generation) {
		s.failReload(w.seat.Slot, why)
	}
}

// reloadStopped gives up, since all workers go.
func (s *Supervisor) reloadStopped() {
	if s.reload == nil {
		return
	}
	s.reload.waiting = append(s.reload.waiting, s.queued...)
	s.queued = nil
	s.endReload(ErrStopped)
}

// failReload leaves those slots that were not reached to their old workers, and gives them back those
// whose new ones are on probation. Where these have lasted they stay. Those that give a slot back do not linger: a version
// that has failed is to keep no clients.
func (s *Supervisor) failReload(slot int, why error) {
	r := s.reload
	var kept []int
	for i, sl := range s.slots {
		if w := sl.current; sl.standby != nil && w.isOf(r.generation) {
			s.restoreStandby(sl)
			s.drain(w, s.drainTimeout(w.seat))
		}
		if sl.generation != r.generation {
			kept = append(kept, i)
		}
	}
	err := fmt.Errorf("slot %d: %w; %s%s", slot, why, keep(kept), quoteLastWords(why))
	if r.slot < len(s.slots) && s.slots[r.slot].current != nil {
		s.cancelNext(s.slots[r.slot], why)
	}
	s.emit(r.event(ReloadFailed, err))
	s.endReload(fmt.Errorf("supervisor: reload failed: %w", err))
}

// endReload answers the requests for this reload, and begins the reload that was asked for meanwhile.
func (s *Supervisor) endReload(err error) {
	for _, result := range s.reload.waiting {
		s.answer(result, err)
	}
	s.lastReload = s.statusOf(s.reload)
	s.lastReload.Ended, s.lastReload.Err = time.Now(), err
	s.reload = nil
	if waiting := s.queued; len(waiting) > 0 {
		s.queued = nil
		s.beginReload(waiting)
	}
}

// keep says which slots have not changed.
func keep(slots []int) string {
	var ranges []string
	for i := 0; i < len(slots); {
		first, last := slots[i], slots[i]
		for i++; i < len(slots) && slots[i] == last+1; i++ {
			last++
		}
		if first == last {
			ranges = append(ranges, fmt.Sprint(first))
		} else {
			ranges = append(ranges, fmt.Sprintf("%d to %d", first, last))
		}
	}
	switch len(slots) {
	case 0:
		return "no slot keeps what it had"
	case 1:
		return fmt.Sprintf("slot %d keeps what it had", slots[0])
	default:
		return fmt.Sprintf("slots %s keep what they had", strings.Join(ranges, ", "))
	}
}

func (r *reload) event(kind EventKind, err error) Event {
	return Event{Kind: kind, Seat: Seat{Slot: -1, Generation: r.generation}, Err: err}
}
