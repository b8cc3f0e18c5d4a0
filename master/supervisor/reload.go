package supervisor

import (
	"fmt"
	"time"
)

// reload is one rolling replacement of all workers.
type reload struct {
	generation int
	began      time.Time
	slot       int // whose new worker is being waited for
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

// startReplace starts a worker to take over from the one in a slot, or joins who did so before.
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
	}
	if err := s.roomForOne(); err != nil {
		return err
	}
	if err := s.spawn(sl, sl.generation); err != nil {
		return fmt.Errorf("supervisor: slot %d keeps its worker: %w", slot, err)
	}
	sl.next.waiting = append(sl.next.waiting, result)
	return nil
}

// tell answers who waits for a worker's start. why is nil if it has taken its slot over.
func (s *Supervisor) tell(w *worker, why error) {
	if why != nil && len(w.waiting) > 0 {
		why = fmt.Errorf("supervisor: slot %d keeps what it had: %w", w.seat.Slot, why)
	}
	for _, result := range w.waiting {
		s.answer(result, why)
	}
	w.waiting = nil
}

// roomForOne tells whether another process may run.
func (s *Supervisor) roomForOne() error {
	if most := s.cfg.MaxProcesses; most > 0 && len(s.workers) >= most {
		return fmt.Errorf("%d worker processes run, and no more may, of which some still drain; wait for them, or shorten the drain timeout", most)
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
		if sl.current.of(r.generation) {
			continue // also a slot that was added during the reload
		}
		if sl.next.of(r.generation) {
			return
		}
		if err := s.roomForOne(); err != nil {
			s.failReload(sl.number, err)
			return
		}
		s.dismiss(sl, errOvertaken) // it was started before the reload
		if err := s.spawn(sl, r.generation); err != nil {
			s.respawn(sl, true)
			s.failReload(sl.number, err)
		}
		return
	}
	s.emit(r.event(Reloaded, nil))
	s.endReload(nil)
}

// reloadFailed ends the reload when w is one of its workers: the one that was
// waited for, or one that was ready and did not last until the end of the reload.
func (s *Supervisor) reloadFailed(w *worker, why error) {
	if r := s.reload; r != nil && w.of(r.generation) {
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

// failReload leaves those slots that were not reached to their old workers. The
// slots before them keep the new ones: these are ready and serve.
func (s *Supervisor) failReload(slot int, why error) {
	r := s.reload
	err := fmt.Errorf("slot %d: %w; slots %d to %d keep what they had", slot, why, r.slot, len(s.slots)-1)
	if r.slot < len(s.slots) && s.slots[r.slot].current != nil {
		s.dismiss(s.slots[r.slot], why)
	}
	s.emit(r.event(ReloadFailed, err))
	s.endReload(fmt.Errorf("supervisor: reload failed: %w", err))
}

// endReload tells who waits, and begins the reload that was asked for meanwhile.
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

func (r *reload) event(kind EventKind, err error) Event {
	return Event{Kind: kind, Seat: Seat{Slot: -1, Generation: r.generation}, Err: err}
}
