package balancer

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/handfast/handfast/hash"
)

// Table says which worker is in which slot. Slots are numbered from 0, and each
// is empty or holds one worker. Changes take effect with the next connection;
// reading takes no lock.
type Table struct {
	Sessions // that workers keep

	changing sync.Mutex
	seats    atomic.Pointer[[]seat] // never changed, only replaced
}

// seat is what one slot holds.
type seat struct {
	worker  Worker        // nil: empty
	start   uint32        // in the worker's name; 0: it has none
	changed chan struct{} // closed when the slot gets another worker, or is removed
	counts  *counts       // of the slot, whichever worker is in it
}

// counts are what happened to the connections of one slot since it is there.
type counts struct {
	handedOff, handedBack, refused, full atomic.Uint64
}

// NewTable returns a table of n empty slots, 1 to hash.MaxSlots.
func NewTable(n int) *Table {
	t := new(Table)
	t.seats.Store(new([]seat))
	t.Resize(n)
	return t
}

// Len returns the number of slots.
func (t *Table) Len() int { return len(t.load()) }

// Fill puts a worker, which has its name by now if it gets one, into a slot, in place of the one that was there, which it returns; nil: none was. The slot
// must exist. What was delivered to the other worker stays with it.
func (t *Table) Fill(slot int, w Worker) (before Worker) {
	t.change(func(seats []seat) ([]seat, []seat) {
		old := seats[slot]
		before = old.worker
		t.setReplaced(before, true) // first: who finds the new one there knows that clients may go back
		seats[slot] = seat{worker: w, start: t.startOf(w), changed: make(chan struct{}), counts: old.counts}
		return seats, []seat{old}
	})
	t.setReplaced(w, false)
	return before
}

// Empty takes the worker out of a slot: its clients wait for the next one.
func (t *Table) Empty(slot int) {
	t.change(func(seats []seat) ([]seat, []seat) {
		seats[slot].worker = nil
		return seats, nil
	})
}

// Resize adds empty slots at the end or removes the last ones, with their
// workers, which it returns. About as many clients move as slots were added or removed.
func (t *Table) Resize(n int) (removed []Worker) {
	if n < 1 || n > hash.MaxSlots {
		panic(fmt.Sprintf("balancer: table of %d slots, want 1 to %d", n, hash.MaxSlots))
	}
	t.change(func(seats []seat) ([]seat, []seat) {
		gone := seats[min(n, len(seats)):]
		for len(seats) < n {
			seats = append(seats, seat{changed: make(chan struct{}), counts: new(counts)})
		}
		for _, s := range gone {
			if s.worker != nil {
				removed = append(removed, s.worker)
				t.setReplaced(s.worker, true)
			}
		}
		return seats[:n:n], gone
	})
	return removed
}

// change replaces the seats by what f makes of a copy, and then wakes the connections that
// wait for those that f says are gone.
func (t *Table) change(f func(copy []seat) (seats, gone []seat)) {
	t.changing.Lock()
	defer t.changing.Unlock()
	seats, gone := f(slices.Clone(t.load()))
	t.seats.Store(&seats)
	for _, s := range gone {
		close(s.changed)
	}
}

func (t *Table) load() []seat { return *t.seats.Load() }

// counts returns those of a slot. What is counted for a slot that is no more, or for
// NoSlot, is forgotten.
func (t *Table) counts(slot int) *counts {
	if seats := t.load(); slot >= 0 && slot < len(seats) {
		return seats[slot].counts
	}
	return new(counts)
}

// Counts are what happened to the connections of one slot since it is there.
type Counts struct {
	HandedOff   uint64 // given to its workers by the master; one that was taken back or handed back counts again
	HandedBack  uint64 // by its workers, between two requests
	Refused     uint64
	MailboxFull uint64 // how often its worker did not keep up
}

// Counts returns those of a slot; of one that is no more they are zero.
func (t *Table) Counts(slot int) Counts { return t.counts(slot).read() }

func (c *counts) read() Counts {
	return Counts{c.handedOff.Load(), c.handedBack.Load(), c.refused.Load(), c.full.Load()}
}

// AllCounts returns those of all slots.
func (t *Table) AllCounts() (all []Counts) {
	for _, s := range t.load() {
		all = append(all, s.counts.read())
	}
	return all
}

// RestoreCounts resizes the table to what was saved, and goes on with these counts.
func (t *Table) RestoreCounts(saved []Counts) {
	if n := len(saved); n > 1 && n <= hash.MaxSlots {
		t.Resize(n)
	}
	for i, s := range t.load() {
		if i < len(saved) {
			s.counts.handedOff.Store(saved[i].HandedOff)
			s.counts.handedBack.Store(saved[i].HandedBack)
			s.counts.refused.Store(saved[i].Refused)
			s.counts.full.Store(saved[i].MailboxFull)
		}
	}
}
