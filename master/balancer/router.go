package balancer

import (
	"errors"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/fdlimit"
)

// router places a batch of connections: it groups them by slot and delivers each
// group. It belongs to one goroutine and keeps its buffers.
type router struct {
	b     *Balancer
	group []fdpass.Handoff // the connections of one slot
	index []int            // and which of the batch they are
	next  []int            // per connection: the next of the same slot, or -1
	first []int            // per slot: its first connection, or -1
	last  []int            // per slot: its last connection
	used  []int            // the slots that have connections
	sent  []int            // descriptors that workers have copies of, to be closed
}

// route delivers a batch and takes ownership of its descriptors. Connections that
// cannot be delivered now are parked.
func (r *router) route(batch []arrival) {
	batch = r.toOwners(batch)
	seats := r.b.table.load()
	r.sort(batch, len(seats))
	for _, slot := range r.used {
		r.group, r.index = r.group[:0], r.index[:0]
		for i := r.first[slot]; i >= 0; i = r.next[i] {
			r.group, r.index = append(r.group, batch[i].Handoff), append(r.index, i)
		}
		r.first[slot] = -1
		n := r.deliver(seats[slot].worker, seats[slot].counts)
		if r.b.cfg.EveryOutcome {
			for _, i := range r.index[:n] {
				r.b.tell(&batch[i], slot, seats[slot].worker, nil)
			}
		}
		for _, i := range r.index[n:] {
			r.b.park(batch[i])
		}
	}
	fdlimit.Close(r.sent)
	r.sent = r.sent[:0]
}

// toOwners delivers those connections whose session a worker keeps, and returns the
// others.
func (r *router) toOwners(batch []arrival) (others []arrival) {
	if !r.b.table.Any() {
		return batch
	}
	others = batch[:0]
	for _, a := range batch {
		owner := r.b.table.Owner(a.client.Session)
		if owner == nil {
			others = append(others, a)
			continue
		}
		r.group = append(r.group[:0], a.Handoff)
		if r.deliver(owner, r.b.table.countsOf(owner)) == 0 {
			r.b.park(a) // the others cannot serve it
		} else if r.b.cfg.EveryOutcome {
			r.b.tell(&a, slotOf(owner), owner, nil)
		}
	}
	return others
}

// sort links the connections of each slot, in the order in which they came.
func (r *router) sort(batch []arrival, slots int) {
	for len(r.first) < slots {
		r.first, r.last = append(r.first, -1), append(r.last, -1)
	}
	r.used, r.next = r.used[:0], r.next[:0]
	for i := range batch {
		slot := r.b.cfg.Strategy.Slot(batch[i].client, slots, 0)
		r.next = append(r.next, -1)
		if r.first[slot] < 0 {
			r.first[slot] = i
			r.used = append(r.used, slot)
		} else {
			r.next[r.last[slot]] = i
		}
		r.last[slot] = i
	}
}

// deliver gives the group to its worker, and returns how many that has taken.
func (r *router) deliver(w Worker, c *counts) int {
	if w == nil {
		return 0
	}
	if copier, ok := w.(Copier); ok {
		n, err := copier.Copy(r.group)
		for _, h := range r.group[:n] {
			r.sent = append(r.sent, h.FD)
		}
		r.b.count(c, n, err)
		return n
	}
	n, _ := r.b.deliver(w, c, r.group)
	return n
}

// deliver is Worker.Deliver, counted.
func (b *Balancer) deliver(w Worker, c *counts, conns []fdpass.Handoff) (n int, err error) {
	n, err = w.Deliver(conns)
	b.count(c, n, err)
	return n, err
}

// count notes that a worker has taken n connections, and why no more.
func (b *Balancer) count(c *counts, n int, err error) {
	b.handedOff.Add(uint64(n))
	c.handedOff.Add(uint64(n))
	if errors.Is(err, fdpass.ErrFull) && err != fdpass.ErrInFlight { // which is another one's fault
		c.full.Add(1)
	}
}
