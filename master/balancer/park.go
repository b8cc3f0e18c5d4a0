package balancer

import (
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/reexec"
)

// reportTime is within how long a worker that has as many connections as it may reports those that it
// has closed (package fdpass: 10 ms), with something to spare.
const reportTime = 20 * time.Millisecond

// park takes ownership of a connection that cannot be delivered now, and waits for its slot.
func (b *Balancer) park(c connection) { b.parkFor(c, b.waitForSlot) }

// parkFor takes ownership of a connection. If there is room, it is parked under its slot, and
// a goroutine runs life; else it is refused.
func (b *Balancer) parkFor(c connection, life func(*parked)) {
	reexec.Lock.MustHold()
	key := b.keyOf(&c)
	if c.addressed && key.slot >= b.table.Len() {
		b.refuser.refuse(c, key.slot, errNoSlot)
		return
	}
	p, err := b.enter(c, key, b.perSlot())
	if err != nil {
		b.refuser.refuse(c, key.slot, err)
		return
	}
	go life(p)
}

// enter is waitlist.enter for a connection that begins to wait.
func (b *Balancer) enter(c connection, key waitKey, perSlot int) (*parked, error) {
	if c.since.IsZero() {
		c.since = time.Now()
	}
	return b.waitlist.enter(c, key, perSlot)
}

// keyOf is the waitKey of a connection whose client is known.
func (b *Balancer) keyOf(c *connection) waitKey {
	return waitKey{slot: c.place(b.cfg.Strategy, b.table.Len(), 0), client: c.client.Key}
}

// unplaced is the waitKey of a connection whose client is not known yet.
func (b *Balancer) unplaced(c *connection) waitKey {
	return waitKey{slot: NoSlot, stranger: b.clients.IsStranger(&c.Handoff)}
}

// perSlot is how many connections of one slot may be parked: when there are other slots,
// half of what there is room for, so that one stalled worker cannot use it up.
func (b *Balancer) perSlot() int {
	if b.table.Len() == 1 {
		return b.waitlist.room
	}
	return b.half()
}

// half is half of the waitlist's room and of the open files.
func (b *Balancer) half() int {
	return (min(b.waitlist.room, fdlimit.Limit()-2*fdlimit.Reserve) + 1) / 2
}

// waitForSlot is the life of a parked connection whose client is known: it is delivered, or refused
// when its patience is over.
func (b *Balancer) waitForSlot(p *parked) {
	if err := b.deliverInTime(p); err != nil {
		b.giveUp(p, err)
	}
}

// giveUp delivers a parked connection to another slot, if that is wanted, or refuses it.
func (b *Balancer) giveUp(p *parked, why error) {
	if why == fdpass.ErrLimit || p.addressed || b.cfg.WhenDown != Next || !b.deliverElsewhere(p) {
		b.refuser.end(p, b.waitlist, nil, p.key.slot, why)
	}
}

// deliverInTime tries to deliver a connection to its slot until the worker there takes it:
// whenever the slot gets another worker, and after each retry delay. The error is
// why the last try failed. A worker that has as many connections as it may is waited for
// only until it would have said that it has room.
func (b *Balancer) deliverInTime(p *parked) error {
	retry := time.NewTicker(b.cfg.RetryDelay)
	defer retry.Stop()
	var reported <-chan time.Time // nil: the worker was never without room
	current := false              // what it has reported is
	for tries := 0; ; {
		changed, err := b.tryDeliver(p, 0)
		limited := err == fdpass.ErrLimit
		if err == nil || err == errNoSlot || limited && current || tries >= b.cfg.MaxRetries {
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
		case <-b.draining.Done():
			return err
		}
	}
}

// deliverElsewhere tries to deliver a connection to the other slots, in the client's order.
func (b *Balancer) deliverElsewhere(p *parked) bool {
	for rank := 1; rank < b.table.Len(); rank++ {
		if _, err := b.tryDeliver(p, rank); err == nil {
			return true
		}
	}
	return false
}

// tryDeliver tries to deliver a parked connection to the worker that keeps its session, or else
// to its slot of the given rank. It has left the waitlist then. When that fails, changed is
// closed as soon as the slot gets another worker.
func (b *Balancer) tryDeliver(p *parked, rank int) (changed <-chan struct{}, err error) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	changed, err = b.deliver(&p.connection, rank)
	if err == nil {
		b.waitlist.leave(p)
	}
	return changed, err
}

// deliver is tryDeliver for a caller that has passed the gate. It does not touch the waitlist.
func (b *Balancer) deliver(c *connection, rank int) (changed <-chan struct{}, err error) {
	reexec.Lock.MustHold()
	seats := b.table.load()
	slot := c.place(b.cfg.Strategy, len(seats), min(rank, len(seats)-1))
	if slot >= len(seats) {
		return nil, errNoSlot
	}
	seat := seats[slot]
	if owner := b.table.ownerOf(c); owner.worker != nil && rank == 0 {
		if err := b.deliverTo(owner.worker, owner.slot, c); err != fdpass.ErrClosed {
			return seat.changed, err
		}
	}
	if seat.worker == nil {
		return seat.changed, errEmpty
	}
	if err = b.deliverTo(seat.worker, slot, c); err == nil {
		b.table.served(c, seat)
	}
	return seat.changed, err
}

func (b *Balancer) deliverTo(w Worker, slot int, c *connection) error {
	n, err := w.Deliver([]fdpass.Handoff{c.Handoff})
	b.ledger.delivered(b.table.counts(slot), n, err)
	if err == nil {
		b.ledger.hasWorker(c, slot, w)
	}
	return err
}
