package balancer

import (
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/reexec"
)

// nowhere is the place of a connection whose client is not known yet.
func (b *Balancer) nowhere(a *arrival) place {
	return place{slot: NoSlot, stranger: b.clients.IsStranger(&a.Handoff)}
}

// park takes ownership of a connection that cannot be delivered now. Like whatever takes a
// connection over it is called with reexec.Lock held for reading.
func (b *Balancer) park(a arrival) { b.enterLot(a, b.awaitSlot) }

// enter is lot.enter for a connection that begins to wait.
func (b *Balancer) enter(a arrival, at place, share int) (*parked, error) {
	if a.parked.IsZero() {
		a.parked = time.Now()
	}
	return b.lot.enter(a, at, share)
}

// enterLot takes ownership of a connection, which waits in its slot's part of the lot while life
// lasts, in a goroutine, if there is room.
func (b *Balancer) enterLot(a arrival, life func(*parked)) {
	slots := b.table.Len()
	at := place{slot: b.cfg.Strategy.Slot(a.client, slots, 0), client: a.client.Key}
	p, err := b.enter(a, at, b.share(slots))
	if err != nil {
		b.turnAway(a, at.slot, err)
		return
	}
	go life(p)
}

// turnAway takes ownership of a connection that cannot even be parked.
func (b *Balancer) turnAway(a arrival, slot int, why error) {
	if p, err := b.overflow.enter(a, place{slot: slot}, maxOverflow); err == nil {
		go b.refuse(p, b.overflow, nil, slot, why)
		return
	}
	// Not even room to refuse politely: answer, but do not wait until the client has
	// read it.
	b.sayWhy(a.FD, a, slot, why)
	fdpass.CloseConnections(a.FD)
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
	return (min(b.lot.room, fdlimit.Limit()-2*fdlimit.Spare) + 1) / 2
}

// awaitSlot is the life of a parked connection whose client is known: it is delivered, or refused
// when its patience is over.
func (b *Balancer) awaitSlot(p *parked) {
	if err := b.waitForSlot(p); err != nil {
		b.giveUp(p, err)
	}
}

// giveUp sends a parked connection elsewhere, if that is wanted, or refuses it.
func (b *Balancer) giveUp(p *parked, why error) {
	if why == fdpass.ErrLimit || b.cfg.WhenDown != Next || !b.offerToOthers(p) {
		b.refuse(p, b.lot, nil, p.at.slot, why)
	}
}

// waitForSlot offers a connection to its slot until the worker there takes it:
// whenever the slot gets another worker, and after each retry delay. The error is
// why the last try failed. A worker that has as many connections as it may is waited for
// only until it would have said that it has room.
func (b *Balancer) waitForSlot(p *parked) error {
	retry := time.NewTicker(b.cfg.RetryDelay)
	defer retry.Stop()
	var reported <-chan time.Time // nil: the worker was never without room
	current := false              // what it has reported is
	for tries := 0; ; {
		changed, err := b.offer(p, 0)
		limited := err == fdpass.ErrLimit
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
func (b *Balancer) offerToOthers(p *parked) bool {
	for rank := 1; rank < b.table.Len(); rank++ {
		if _, err := b.offer(p, rank); err == nil {
			return true
		}
	}
	return false
}

// offer tries to deliver one connection to the worker that keeps its session, and for want
// of one to its slot of the given rank; it has left the lot then. When that fails, changed is
// closed as soon as the slot gets another worker.
func (b *Balancer) offer(p *parked, rank int) (changed <-chan struct{}, err error) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	changed, err = b.tryOffer(&p.arrival, rank)
	if err == nil {
		b.lot.leave(p)
	}
	return changed, err
}

// tryOffer is offer for who holds the lock, and it does not touch the lot.
func (b *Balancer) tryOffer(a *arrival, rank int) (changed <-chan struct{}, err error) {
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

func (b *Balancer) offerTo(w Worker, slot int, a *arrival) error {
	_, err := b.deliver(w, b.table.counts(slot), []fdpass.Handoff{a.Handoff})
	if err == nil {
		b.tell(a, slot, w, nil)
	}
	return err
}
