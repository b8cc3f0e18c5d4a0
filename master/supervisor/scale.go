package supervisor

import (
	"cmp"
	"time"
)

// Scale changes the number of slots. Slots are added when their workers are
// ready, and in order; removed slots lose their clients at once and their
// workers linger or drain. Scale does not wait for either.
func (s *Supervisor) Scale(n int) error {
	return s.do(func() error { return s.scale(func(int) int { return n }) })
}

// ScaleBy adds n slots, or removes -n.
func (s *Supervisor) ScaleBy(n int) error {
	return s.do(func() error { return s.scale(func(now int) int { return now + n }) })
}

func (s *Supervisor) scale(target func(now int) int) error {
	n := target(len(s.slots))
	if err := s.cfg.checkWorkers(n); err != nil {
		return err
	}
	if n < len(s.slots) {
		s.shrink(n)
	} else {
		s.grow(n)
	}
	s.emit(Event{Kind: Scaled, Seat: Seat{Slot: -1, Slots: n, Generation: s.latest()}})
	return nil
}

// grow adds slots and starts their workers.
func (s *Supervisor) grow(n int) {
	now, generation := time.Now(), s.latest()
	if s.reload != nil {
		generation = s.generation
	}
	for i := len(s.slots); i < n; i++ {
		// The first start, like any other, is done by tick.
		s.slots = append(s.slots, &slot{number: i, generation: generation, respawnAt: now})
	}
}

// latest is the generation of the slots, the latest if they differ: that of a reload which has
// failed in all of them is none.
func (s *Supervisor) latest() (generation int) {
	for _, sl := range s.slots {
		generation = max(generation, sl.generation)
	}
	return cmp.Or(generation, s.generation)
}

// shrink removes the last slots.
func (s *Supervisor) shrink(n int) {
	for _, sl := range s.slots[n:] {
		s.fillEarly(sl)
	}
	if s.published > n {
		s.published = n
		s.cfg.Slots.Resize(n)
	}
	removed := s.slots[n:]
	s.slots = s.slots[:n:n]
	for _, sl := range removed {
		s.clearSlot(sl, s.linger, errRemoved)
		s.cancelNext(sl, errRemoved)
	}
	s.stepReload() // which may have waited for a slot that is gone
}

// fillEarly gives an empty slot to the worker that is being started for it, if that has begun to serve the slot's clients, and tells whether it has. Such a
// worker must not be cancelled: it is let go as any other, and finishes what it has.
func (s *Supervisor) fillEarly(sl *slot) bool {
	w := sl.next
	if w == nil || sl.current != nil || w.state != Starting {
		return false
	}
	link, ok := w.link.(earlyLink)
	if !ok || !link.Begun() {
		return false
	}
	s.ready(w)
	return true
}

// cancelNext ends the worker that was to take a slot over. Requests that wait for it are answered with why.
func (s *Supervisor) cancelNext(sl *slot, why error) {
	if w := sl.next; w != nil {
		sl.next = nil
		if link, ok := w.link.(earlyLink); ok && sl.current == nil && w.state == Starting && link.Heeds() && !s.stopping {
			s.drain(w, s.killTimeout()) // it may have begun. Who stops does not wait for one that has not.
		} else {
			s.terminate(w)
		}
		s.replyWaiting(w, why)
	}
}

// clearSlot lets the workers of a slot go that is not needed any more. Requests that wait for them are answered with why.
func (s *Supervisor) clearSlot(sl *slot, letGo func(*worker), why error) {
	if w := sl.current; w != nil {
		sl.current = nil
		letGo(w)
		s.replyWaiting(w, why)
	}
	if w := sl.standby; w != nil {
		sl.standby = nil
		letGo(w)
	}
}

// fill puts a slot's worker into use. New slots come into use in order, so
// that the number of slots never counts one that was never filled.
func (s *Supervisor) fill(sl *slot) {
	if sl.number < s.published {
		s.cfg.Slots.Fill(sl.number, sl.current.link)
		return
	}
	for ; s.published < len(s.slots) && s.slots[s.published].current != nil; s.published++ {
		s.cfg.Slots.Resize(s.published + 1)
		s.cfg.Slots.Fill(s.published, s.slots[s.published].current.link)
	}
}
