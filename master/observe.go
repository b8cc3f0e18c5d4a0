package master

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	// observeInterval is the time between two looks at what came to slots.
	observeInterval = 5 * time.Second
	// rateSamples is how many looks are remembered: rates are those of the last ten to fifteen seconds.
	rateSamples = 3
	// rateTime is the shortest time that a rate is of.
	rateTime = time.Second
	// fullestLen is how many connections the share of the fullest slot is of at least, and fullestTime the longest that they may take.
	fullestLen  = 1000
	fullestTime = 10 * time.Minute
	// fullestOpen is how many must be open at least where nobody knows how many come.
	fullestOpen = 100
	// crowded is the share of a slot that is worth a warning: many clients would have spread.
	crowded = 0.9
)

// observer remembers how many connections came to slots, for rates, and for the slot that has most of them. A goroutine of Run has it
// look.
type observer struct {
	warn func(FullestSlot) // called once

	mu      sync.Mutex
	samples []sample // the latest is the last
	window  sample   // where the one of the fullest slot has begun
	fullest FullestSlot
	warned  bool
}

// sample is how many connections had come to each slot at some time.
type sample struct {
	at     time.Time
	bySlot []uint64
}

// FullestSlot is the slot that most connections came to lately.
type FullestSlot struct {
	Slot  int       `json:"slot"`
	Share float64   `json:"share"` // between 0 and 1; where clients are many, that of each slot is about the same
	Of    int       `json:"of"`    // of so many connections
	Open  bool      `json:"open"`  // which are open, since few have come lately, or nobody knows how many
	At    time.Time `json:"at"`    // when the last of them was counted
}

// note adds a sample; nil: nobody knows.
func (o *observer) note(now time.Time, bySlot []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if bySlot == nil {
		return
	}
	o.samples = append(o.samples, sample{now, bySlot})
	o.samples = o.samples[max(0, len(o.samples)-rateSamples):]
	came := o.window.until(bySlot)
	if came == nil || now.Sub(o.window.at) > fullestTime {
		o.window = sample{now, bySlot}
		return
	}
	if f, ok := fullest(came, fullestLen); ok {
		f.At = now.UTC()
		o.fullest, o.window = f, sample{now, bySlot}
		if f.Share >= crowded && !o.warned {
			o.warned = true
			o.warn(f)
		}
	}
}

// until returns how many connections have come to each slot since; nil if there are other slots now.
func (s sample) until(bySlot []uint64) []uint64 {
	if len(s.bySlot) != len(bySlot) {
		return nil
	}
	came := make([]uint64, len(bySlot))
	for slot, n := range bySlot {
		if n < s.bySlot[slot] { // it was away for a while
			return nil
		}
		came[slot] = n - s.bySlot[slot]
	}
	return came
}

// fullest returns the slot that most of the connections belong to, unless there is one slot only, or they are less than so many.
func fullest[T int | uint64](bySlot []T, least int) (f FullestSlot, ok bool) {
	for _, n := range bySlot {
		f.Of += int(n)
	}
	if len(bySlot) < 2 || f.Of < least {
		return f, false
	}
	most := slices.Max(bySlot)
	f.Slot, f.Share = slices.Index(bySlot, most), float64(most)/float64(f.Of)
	return f, true
}

// rates returns how many connections a second have come to each slot lately; nil: nobody knows.
func (o *observer) rates(now time.Time, bySlot []uint64) []float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, before := range o.samples {
		came := before.until(bySlot)
		if passed := now.Sub(before.at); came != nil && passed >= rateTime {
			rates := make([]float64, len(came))
			for slot, n := range came {
				rates[slot] = math.Round(10*float64(n)/passed.Seconds()) / 10
			}
			return rates
		}
	}
	return nil
}

// latest returns the fullest slot of the latest window that has ended; nil: that is too long ago, or none has.
func (o *observer) latest(now time.Time) *FullestSlot {
	o.mu.Lock()
	defer o.mu.Unlock()
	if f := o.fullest; f.Of > 0 && now.Sub(f.At) <= fullestTime {
		return &f
	}
	return nil
}

// observe has the observer look until ctx ends.
func (m *Master) observe(ctx context.Context) {
	look := time.NewTicker(observeInterval)
	defer look.Stop()
	m.noteCame()
	for {
		select {
		case <-look.C:
			m.noteCame()
			m.route.sample()
		case <-ctx.Done():
			return
		}
	}
}

func (m *Master) noteCame() {
	came, _ := m.route.came()
	m.observer.note(time.Now(), came)
}

// warnCrowded warns that nearly all connections belong to one slot, where workers accept for themselves. Else, or if that can be
// seen of those that are open, the balancer warns of the client.
func (m *Master) warnCrowded(f FullestSlot) {
	if l, _ := m.balancer.Largest(); m.route.acceptsAll() || l.Client.IsValid() {
		return
	}
	m.log.Warn("one slot has nearly all connections", "slot", f.Slot, "share", math.Round(100*f.Share)/100, "connections", f.Of,
		"note", "many clients would have spread over all slots: most likely they share an address", "remedy", "if they come through a proxy: --behind-proxy or --proxy-protocol")
}
