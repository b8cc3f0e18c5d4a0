package balancer

import (
	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/reexec"
)

// router places a batch of connections: it groups them by slot and delivers each
// group. It belongs to one goroutine and keeps its buffers.
type router struct {
	table    *Table
	strategy Strategy
	ledger   *ledger
	park     func(connection) // takes ownership of those that cannot be delivered now
	again    func(connection) // and of those that from has handed back, although they are its own
	from     Worker           // has handed the batch back; nil: it was accepted

	group []fdpass.Handoff // the connections of one slot
	index []int            // and which of the batch they are
	next  []int            // per connection: the next of the same slot, or -1
	first []int            // per slot: its first connection, or -1
	last  []int            // per slot: its last connection
	used  []int            // the slots that have connections
	sent  []int            // descriptors that workers have copies of, to be closed
}

func (b *Balancer) newRouter() router {
	again := func(c connection) { b.parkFor(c, b.waitAgain) }
	return router{table: b.table, strategy: b.cfg.Strategy, ledger: b.ledger, park: b.park, again: again}
}

// route delivers a batch and takes ownership of its descriptors. Connections that
// cannot be delivered now are parked.
func (r *router) route(batch []connection) {
	reexec.Lock.MustHold()
	seats := r.table.load() // before owners are asked for: a worker that is replaced meanwhile still gets its clients
	batch = r.toOwners(batch)
	r.sort(batch, len(seats))
	for _, slot := range r.used {
		r.group, r.index = r.group[:0], r.index[:0]
		for i := r.first[slot]; i >= 0; i = r.next[i] {
			r.group, r.index = append(r.group, batch[i].Handoff), append(r.index, i)
		}
		r.first[slot] = -1
		n := r.deliver(seats[slot].worker, seats[slot].counts)
		if r.table.affinity != nil {
			for _, i := range r.index[:n] {
				r.table.served(&batch[i], seats[slot])
			}
		}
		if r.ledger.every {
			for _, i := range r.index[:n] {
				r.ledger.hasWorker(&batch[i], slot, seats[slot].worker)
			}
		}
		for _, i := range r.index[n:] {
			r.wait(batch[i], seats[slot].worker)
		}
	}
	fdlimit.Close(r.sent)
	r.sent = r.sent[:0]
}

// toOwners delivers those connections whose session a worker keeps, and returns the
// others.
func (r *router) toOwners(batch []connection) (others []connection) {
	if !r.table.any.Load() {
		return batch
	}
	others = batch[:0]
	for _, c := range batch {
		owner := r.table.ownerOf(&c)
		if owner.worker == nil {
			others = append(others, c)
			continue
		}
		r.group = append(r.group[:0], c.Handoff)
		if r.deliver(owner.worker, r.table.counts(owner.slot)) == 0 {
			r.wait(c, owner.worker) // the others cannot serve it
		} else if r.ledger.every {
			r.ledger.hasWorker(&c, owner.slot, owner.worker)
		}
	}
	return others
}

// sort links the connections of each slot, in the order in which they came.
func (r *router) sort(batch []connection, slots int) {
	for len(r.first) < slots {
		r.first, r.last = append(r.first, -1), append(r.last, -1)
	}
	r.used, r.next = r.used[:0], r.next[:0]
	for i := range batch {
		slot := batch[i].place(r.strategy, slots, 0)
		r.next = append(r.next, -1)
		if slot >= slots {
			r.park(batch[i]) // which resets it
			continue
		}
		if r.first[slot] < 0 {
			r.first[slot] = i
			r.used = append(r.used, slot)
		} else {
			r.next[r.last[slot]] = i
		}
		r.last[slot] = i
	}
}

// wait takes ownership of a connection that its worker has not taken.
func (r *router) wait(c connection, w Worker) {
	if w != nil && w == r.from {
		r.again(c)
	} else {
		r.park(c)
	}
}

// deliver gives the group to its worker, and returns how many that has taken.
func (r *router) deliver(w Worker, c *counts) (n int) {
	if w == nil || w == r.from {
		return 0
	}
	var err error
	if copier, ok := w.(Copier); ok {
		n, err = copier.Copy(r.group)
		for _, h := range r.group[:n] {
			r.sent = append(r.sent, h.FD)
		}
	} else {
		n, err = w.Deliver(r.group)
	}
	r.ledger.delivered(c, n, err)
	return n
}
