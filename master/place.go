package master

import (
	"net/netip"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
)

// Strategy says where clients belong. It is asked once per connection on the
// straight line and must be safe for use by several goroutines.
type Strategy interface {
	// Slot returns the client's choice of the given rank among slots 0 to
	// slots-1: rank 0 is where it belongs, ranks up to slots-1 name the other
	// slots in the order in which they stand in. client is the zero Addr when the
	// address is not known.
	Slot(client netip.Addr, slots, rank int) int
}

// ByAddress is the Strategy that hashes the client's address.
type ByAddress struct{ hash.Config }

// Slot implements Strategy.
func (s ByAddress) Slot(client netip.Addr, slots, rank int) int {
	return s.Key(client).Ranked(slots, rank)
}

// router places a batch of connections: it groups them by slot and delivers each
// group. It belongs to one goroutine and keeps its buffers.
type router struct {
	b     *Balancer
	group []fdpass.Handoff // the connections of one slot
	next  []int            // per connection: the next of the same slot, or -1
	first []int            // per slot: its first connection, or -1
	last  []int            // per slot: its last connection
	used  []int            // the slots that have connections
}

// route delivers a batch and takes ownership of its descriptors. Connections that
// cannot be delivered now are parked.
func (r *router) route(batch []fdpass.Handoff) {
	seats := r.b.table.load()
	r.sort(batch, len(seats))
	for _, slot := range r.used {
		r.group = r.group[:0]
		for i := r.first[slot]; i >= 0; i = r.next[i] {
			r.group = append(r.group, batch[i])
		}
		r.first[slot] = -1
		r.deliver(seats[slot].worker)
	}
}

// sort links the connections of each slot, in the order in which they came.
func (r *router) sort(batch []fdpass.Handoff, slots int) {
	for len(r.first) < slots {
		r.first, r.last = append(r.first, -1), append(r.last, -1)
	}
	r.used, r.next = r.used[:0], r.next[:0]
	for i := range batch {
		slot := r.b.cfg.Strategy.Slot(batch[i].Client.Addr(), slots, 0)
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

// deliver gives the group to its worker, and parks what that does not take.
func (r *router) deliver(w Worker) {
	n := 0
	if w != nil {
		n, _ = w.Deliver(r.group)
		r.b.handedOff.Add(uint64(n))
	}
	for _, h := range r.group[n:] {
		r.b.park(h)
	}
}
