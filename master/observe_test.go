package master

import (
	"slices"
	"testing"
	"time"
)

// clockAtTest is when these tests begin.
var clockAtTest = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// TestRates: those of the last samples, of slots that are the same ones.
func TestRates(t *testing.T) {
	var o observer
	at := clockAtTest
	expect := func(step string, bySlot []uint64, want ...float64) {
		t.Helper()
		if got := o.rates(at, bySlot); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", step, got, want)
		}
	}
	expect("nothing known", nil)
	o.note(at, []uint64{100, 0})
	at = at.Add(rateTime / 2)
	expect("too soon", []uint64{100, 7})
	at = clockAtTest.Add(4 * time.Second)
	expect("soon", []uint64{100, 7}, 0, 1.8)
	for range rateSamples {
		at = at.Add(observeInterval)
		o.note(at, []uint64{200, 7})
	}
	at = at.Add(observeInterval)
	expect("what was before the samples is forgotten", []uint64{215, 7}, 1, 0)
	expect("other slots", []uint64{215, 7, 0})
	expect("nobody knows", nil)
	o.note(at, []uint64{215, 0})
	at = at.Add(observeInterval)
	expect("a slot that began anew", []uint64{215, 5}, 0, 1)
}

// TestFullest: of windows of many connections that came within some time; a slot with nearly all is warned of once.
func TestFullest(t *testing.T) {
	var warned []FullestSlot
	o := observer{warn: func(f FullestSlot) { warned = append(warned, f) }}
	at, sum := clockAtTest, []uint64{0, 0}
	comes := func(after time.Duration, bySlot ...uint64) *FullestSlot {
		at = at.Add(after)
		sum = slices.Clone(sum)
		for slot, n := range bySlot {
			sum[slot] += n
		}
		o.note(at, sum)
		return o.latest(at)
	}
	if f := comes(0); f != nil {
		t.Error("at first", f)
	}
	if f := comes(time.Second, 700, 299); f != nil {
		t.Error("before the window is full", f)
	}
	if f := comes(time.Second, 50, 0); f == nil || f.Slot != 0 || f.Of != 1049 || f.Share != 750.0/1049 || f.Open || !f.At.Equal(at) {
		t.Error("a window", f)
	}
	if f := comes(time.Second, 0, 10); f == nil || f.Slot != 0 {
		t.Error("while the next is not full", f)
	}
	if f := comes(fullestTime, 0, 9000); f != nil {
		t.Error("long after", f)
	}
	if len(warned) != 0 {
		t.Error("warned of", warned)
	}
	for range 3 {
		if f := comes(time.Second, 100, 900); f == nil || f.Slot != 1 || f.Share != 0.9 {
			t.Error("nearly all", f)
		}
	}
	if len(warned) != 1 || warned[0].Slot != 1 {
		t.Error("warned of", warned)
	}
	o.note(at, []uint64{9e9, 9e9, 9e9})
	if f := comes(0); f == nil || f.Slot != 1 {
		t.Error("other slots", f)
	}
	o = observer{warn: o.warn}
	o.note(at, []uint64{0})
	if o.note(at.Add(time.Second), []uint64{9e9}); o.latest(at) != nil {
		t.Error("one slot has all, what else")
	}
}

// TestStatusLately: what is open, by slot and in all; the fullest slot is of these where nobody knows how many came; what is not known is
// null.
func TestStatusLately(t *testing.T) {
	m, _ := newFake(LinkNative)
	r := m.route.(*fakeRoute)
	of := func() Status {
		s := Status{Slots: make([]SlotStatus, 2)}
		m.countLately(&s)
		return s
	}
	if s := of(); s.Totals.Open != nil || s.Slots[0].Open != nil || s.Slots[0].Rate != nil || s.Fullest != nil {
		t.Errorf("%+v", s)
	}
	r.openNow = []int{99, 0, 0} // of a slot that was removed since, too
	if s := of(); *s.Totals.Open != 99 || *s.Slots[0].Open != 99 || *s.Slots[1].Open != 0 || s.Fullest != nil {
		t.Errorf("%+v", s)
	}
	r.openNow = []int{20, 80}
	if f := of().Fullest; f == nil || f.Slot != 1 || f.Share != 0.8 || !f.Open || f.Of != 100 {
		t.Errorf("%+v", f)
	}
	m.observer.note(time.Now().Add(-time.Minute), []uint64{0, 0})
	r.cameNow = []uint64{600, 0}
	if s := of(); !s.Fullest.Open || *s.Slots[0].Rate != 10 || *s.Slots[1].Rate != 0 {
		t.Errorf("%+v", s)
	}
	m.observer.note(time.Now(), []uint64{900, 300})
	if f := of().Fullest; f == nil || f.Slot != 0 || f.Share != 0.75 || f.Open {
		t.Errorf("%+v", f)
	}
	if s := of(); s.Slots[0].Handshakes != nil || s.Totals.Handshakes != nil {
		t.Errorf("the master routes: %+v", s)
	}
	r.kernel = true
	if s := of(); *s.Slots[0].Handshakes != 600 || *s.Slots[1].Handshakes != 0 || *s.Totals.Handshakes != 7 {
		t.Errorf("the kernel counts: %+v", s)
	}
}
