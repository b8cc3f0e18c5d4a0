package balancer

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
)

// inSlot is the key of a client in a slot.
func inSlot(slot int, client uint64) waitKey { return waitKey{slot: slot, client: hash.Key(client)} }

var (
	unknown  = waitKey{slot: NoSlot}
	stranger = waitKey{slot: NoSlot, stranger: true}
)

// TestQuotas: what is parked already, what comes, and whether there is room for it.
func TestQuotas(t *testing.T) {
	const room, perSlot, perClient = 6, 4, 2
	for name, tt := range map[string]struct {
		parked []waitKey
		comes  waitKey
		want   error
	}{
		"the first":                          {nil, inSlot(0, 1), nil},
		"the last of its slot":               {[]waitKey{inSlot(0, 1), inSlot(0, 2), inSlot(0, 3)}, inSlot(0, 4), nil},
		"one too many of its slot":           {[]waitKey{inSlot(0, 1), inSlot(0, 2), inSlot(0, 3), inSlot(0, 4)}, inSlot(0, 5), errCrowded},
		"another slot has room":              {[]waitKey{inSlot(0, 1), inSlot(0, 2), inSlot(0, 3), inSlot(0, 4)}, inSlot(1, 5), nil},
		"one too many altogether":            {[]waitKey{inSlot(0, 1), inSlot(0, 2), inSlot(0, 3), inSlot(1, 4), inSlot(1, 5), inSlot(2, 6)}, inSlot(3, 7), errCrowded},
		"the second of its client":           {[]waitKey{inSlot(0, 1)}, inSlot(0, 1), nil},
		"the third of its client":            {[]waitKey{inSlot(0, 1), inSlot(0, 1)}, inSlot(0, 1), errGreedy},
		"its client counts in all slots":     {[]waitKey{inSlot(0, 1), inSlot(1, 1)}, inSlot(2, 1), errGreedy},
		"clients that are not known":         {[]waitKey{unknown, unknown, unknown}, unknown, nil},
		"too many that are not known":        {[]waitKey{unknown, unknown, unknown, unknown}, unknown, errCrowded},
		"strangers have half":                {[]waitKey{stranger}, stranger, nil},
		"a stranger beyond half":             {[]waitKey{stranger, stranger}, stranger, errCrowded},
		"beside strangers there is room":     {[]waitKey{stranger, stranger}, unknown, nil},
		"strangers do not get what is left":  {[]waitKey{unknown, unknown, unknown, unknown}, stranger, errCrowded},
		"a slot is full and its client, too": {[]waitKey{inSlot(0, 1), inSlot(0, 1), inSlot(0, 2), inSlot(0, 2)}, inSlot(0, 1), errCrowded},
	} {
		l := newWaitlist(room, perClient)
		for _, key := range tt.parked {
			if _, err := l.enter(connection{}, key, perSlot); err != nil {
				t.Errorf("%s: %+v: %v", name, key, err)
			}
		}
		before := l.len()
		p, err := l.enter(connection{}, tt.comes, perSlot)
		if err != tt.want || (p != nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if after := l.len(); (after > before) != (err == nil) {
			t.Errorf("%s: %d parked, %d before", name, after, before)
		}
	}
}

// TestRekey: a connection whose client becomes known keeps its place, also the last one, and changes
// whose quota it counts for; when that is used up it stays where it is.
func TestRekey(t *testing.T) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	l := newWaitlist(2, 1)
	p, _ := l.enter(connection{}, stranger, 2)
	l.enter(connection{}, inSlot(0, 1), 2)
	if err := l.rekey(p, inSlot(0, 1), 2); err != errGreedy || p.key != stranger {
		t.Errorf("%v, %+v", err, p.key)
	}
	if err := l.rekey(p, inSlot(0, 2), 1); err != errCrowded || p.key != stranger {
		t.Errorf("%v, %+v", err, p.key)
	}
	if err := l.rekey(p, inSlot(0, 2), 2); err != nil || p.key != inSlot(0, 2) {
		t.Errorf("%v, %+v", err, p.key)
	}
	if n := l.countBySlot(); n[0] != 2 || len(n) != 1 || l.strangers != 0 {
		t.Errorf("%v, %d strangers", n, l.strangers)
	}
}

// TestWaitlistIsEmptyAgain: whatever happened before, nothing is left of connections that have left.
func TestWaitlistIsEmptyAgain(t *testing.T) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	random := rand.New(rand.NewPCG(1, 2))
	l := newWaitlist(50, 3)
	key := func() waitKey {
		if slot := random.IntN(5) - 1; slot != NoSlot {
			return inSlot(slot, random.Uint64N(20))
		}
		return waitKey{slot: NoSlot, stranger: random.IntN(2) == 0}
	}
	var all []*parked
	perSlot, perClient := make(map[int]int), make(map[hash.Key]int)
	for range 10_000 {
		switch n := len(all); {
		case n > 0 && random.IntN(3) == 0:
			i := random.IntN(n)
			l.leave(all[i])
			all[i], all = all[n-1], all[:n-1]
		case n > 0 && random.IntN(3) == 0:
			l.rekey(all[random.IntN(n)], key(), 20)
		default:
			if p, err := l.enter(connection{}, key(), 20); err == nil {
				all = append(all, p)
			}
		}
		clear(perSlot)
		clear(perClient)
		strangers := 0
		for _, p := range all {
			perSlot[p.key.slot]++
			if p.key.slot != NoSlot {
				perClient[p.key.client]++
			}
			if p.key.stranger {
				strangers++
			}
		}
		for slot, n := range perSlot {
			if n > 20 || l.bySlot[slot] != n {
				t.Fatalf("slot %d: %d, counted %d", slot, n, l.bySlot[slot])
			}
		}
		for client, n := range perClient {
			if n > 3 || l.byClient[client] != n {
				t.Fatalf("client %d: %d, counted %d", client, n, l.byClient[client])
			}
		}
		if strangers > 10 || l.strangers != strangers || len(all) > 50 || l.len() != len(all) {
			t.Fatalf("%d strangers, counted %d; %d parked, counted %d", strangers, l.strangers, len(all), l.len())
		}
	}
	for _, p := range all {
		l.leave(p)
	}
	if l.len()+len(l.bySlot)+len(l.byClient)+l.strangers != 0 {
		t.Errorf("left: %+v", l)
	}
}

// TestWaitUntilEmpty: it returns when the last connection has left, and when its context ends.
func TestWaitUntilEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newWaitlist(2, 0)
		if err := l.waitUntilEmpty(t.Context()); err != nil {
			t.Error(err)
		}
		p, _ := l.enter(connection{}, unknown, 2)
		why := errors.New("no more time")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
		defer cancel()
		if err := l.waitUntilEmpty(ctx); err != why {
			t.Error(err)
		}
		time.AfterFunc(time.Minute, func() {
			reexec.Lock.RLock()
			defer reexec.Lock.RUnlock()
			l.leave(p)
		})
		began := time.Now()
		if err := l.waitUntilEmpty(t.Context()); err != nil || time.Since(began) != time.Minute {
			t.Error(err, time.Since(began))
		}
	})
}
