package master

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/files"
	"github.com/handfast/handfast/master/mailbox"
)

// lot counts what is parked, or is being refused. It has room for a fixed number of connections, and
// for fewer of one slot, and of one client.
type lot struct {
	mu        sync.Mutex
	room      int
	perClient int // 0: as many as there is room for
	parked    int
	bySlot    map[int]int
	byClient  map[hash.Key]int // only if perClient bounds them
	empty     *sync.Cond       // signalled when parked becomes 0
}

// place is one in the lot.
type place struct {
	slot   int      // noSlot: it is not known yet
	client hash.Key // whom the connection is from, if the slot is known
}

// nowhere is the place of a connection whose client is not known yet.
var nowhere = place{slot: noSlot}

func newLot(room, perClient int) *lot {
	l := &lot{room: room, perClient: perClient, bySlot: make(map[int]int), byClient: make(map[hash.Key]int)}
	l.empty = sync.NewCond(&l.mu)
	return l
}

// enter takes a place, of whose slot share may be there. The error is why there is none.
func (l *lot) enter(p place, share int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.parked >= l.room {
		return errCrowded
	}
	if err := l.note(p, share); err != nil {
		return err
	}
	l.parked++
	return nil
}

// move gives up a place for another, of whose slot share may be there.
func (l *lot) move(from, to place, share int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.note(to, share); err != nil {
		return err
	}
	l.forget(from)
	return nil
}

func (l *lot) note(p place, share int) error {
	bounded := l.perClient > 0 && p.slot != noSlot
	switch {
	case l.bySlot[p.slot] >= share:
		return errCrowded
	case bounded && l.byClient[p.client] >= l.perClient:
		return errGreedy
	case bounded:
		l.byClient[p.client]++
	}
	l.bySlot[p.slot]++
	return nil
}

func (l *lot) forget(p place) {
	if l.bySlot[p.slot]--; l.bySlot[p.slot] == 0 {
		delete(l.bySlot, p.slot)
	}
	if l.perClient > 0 && p.slot != noSlot {
		if l.byClient[p.client]--; l.byClient[p.client] == 0 {
			delete(l.byClient, p.client)
		}
	}
}

func (l *lot) leave(p place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(p)
	if l.parked--; l.parked == 0 {
		l.empty.Broadcast()
	}
}

func (l *lot) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parked
}

// counts returns how many are there, by slot.
func (l *lot) counts() map[int]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.bySlot)
}

// wait returns nil when nothing is parked, or the reason why ctx ended before.
func (l *lot) wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.empty.Broadcast()
	})()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.parked > 0 && ctx.Err() == nil {
		l.empty.Wait()
	}
	if l.parked > 0 {
		return context.Cause(ctx)
	}
	return nil
}

// park takes ownership of a connection that cannot be delivered now.
func (b *Balancer) park(a arrival) {
	a.parked = time.Now()
	b.enterLot(a, func(slot int) { b.awaitSlot(a, slot) })
}

// enterLot takes ownership of a connection, which waits in its slot's part of the lot while life
// lasts, in a goroutine, if there is room.
func (b *Balancer) enterLot(a arrival, life func(slot int)) {
	slots := b.table.Len()
	at := place{b.cfg.Strategy.Slot(a.client, slots, 0), a.client.Key}
	if err := b.lot.enter(at, b.share(slots)); err != nil {
		b.turnAway(a, at.slot, err)
		return
	}
	go func() {
		defer b.lot.leave(at)
		life(at.slot)
	}()
}

// turnAway takes ownership of a connection that cannot even be parked.
func (b *Balancer) turnAway(a arrival, slot int, why error) {
	if b.overflow.enter(place{slot: slot}, maxOverflow) == nil {
		go b.overflowed(a, slot, why)
		return
	}
	// Not even room to refuse politely: answer, but do not wait until the client has
	// read it.
	b.refuse(a, slot, why, 0)
}

func (b *Balancer) overflowed(a arrival, slot int, why error) {
	defer b.overflow.leave(place{slot: slot})
	b.refuse(a, slot, why, lingerTimeout)
}

// share is how many connections of one slot may be parked: when there are others,
// half of what there is room for, so that one stalled worker cannot use it up.
func (b *Balancer) share(slots int) int {
	if slots == 1 {
		return b.lot.room
	}
	return b.half()
}

// half is half of the room and of the open files.
func (b *Balancer) half() int {
	return (min(b.lot.room, files.Limit()-2*files.Spare) + 1) / 2
}

// awaitSlot delivers a parked connection, or refuses it when its patience is over.
func (b *Balancer) awaitSlot(a arrival, slot int) {
	if err := b.waitForSlot(a); err != nil {
		b.giveUp(a, slot, err)
	}
}

// giveUp sends a parked connection elsewhere, if that is wanted, or refuses it.
func (b *Balancer) giveUp(a arrival, slot int, why error) {
	if why == mailbox.ErrLimit || b.cfg.WhenDown != Next || !b.offerToOthers(a) {
		b.refuse(a, slot, why, lingerTimeout)
	}
}

// waitForSlot offers a connection to its slot until the worker there takes it:
// whenever the slot gets another worker, and after each retry delay. The error is
// why the last try failed. A worker that has as many connections as it may is waited for
// only until it would have said that it has room.
func (b *Balancer) waitForSlot(a arrival) error {
	retry := time.NewTicker(b.cfg.RetryDelay)
	defer retry.Stop()
	var reported <-chan time.Time // nil: the worker was never without room
	current := false              // what it has reported is
	for tries := 0; ; {
		changed, err := b.offer(a, 0)
		limited := err == mailbox.ErrLimit
		if err == nil || limited && current || tries >= b.cfg.MaxRetries {
			return err
		}
		if limited && reported == nil {
			reported = time.After(reportTime)
		}
		select {
		case <-changed:
		case <-reported:
			current = true
		case <-retry.C:
			tries++
		case <-b.hurry.Done():
			return err
		}
	}
}

// reportTime is within how long a worker that may have so many connections reports those that it
// has closed (package fdpass: 10 ms), with something to spare.
const reportTime = 20 * time.Millisecond

// offerToOthers offers a connection to all other slots, in the client's order.
func (b *Balancer) offerToOthers(a arrival) bool {
	for rank := 1; rank < b.table.Len(); rank++ {
		if _, err := b.offer(a, rank); err == nil {
			return true
		}
	}
	return false
}

// offer tries to deliver one connection to the worker that keeps its session, and for want
// of one to its slot of the given rank. When that fails, changed is closed as soon as the
// slot gets another worker.
func (b *Balancer) offer(a arrival, rank int) (changed <-chan struct{}, err error) {
	seats := b.table.load()
	slot := b.cfg.Strategy.Slot(a.client, len(seats), min(rank, len(seats)-1))
	seat := seats[slot]
	if owner := b.table.Owner(a.client.Session); owner != nil && rank == 0 {
		if err := b.offerTo(owner, slotOf(owner), a); err != fdpass.ErrClosed {
			return seat.changed, err
		}
	}
	if seat.worker == nil {
		return seat.changed, errEmpty
	}
	return seat.changed, b.offerTo(seat.worker, slot, a)
}

func (b *Balancer) offerTo(w Worker, slot int, a arrival) error {
	_, err := b.deliver(w, b.table.counts(slot), []fdpass.Handoff{a.Handoff})
	if err == nil {
		b.tell(&a, slot, w, nil)
	}
	return err
}
