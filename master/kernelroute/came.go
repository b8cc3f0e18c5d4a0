package kernelroute

import "github.com/handfast/handfast/hash"

// Came returns how many handshakes have begun for each slot, and for all, also of slots that are no more; nil if nobody counts, or not at
// all addresses. A first packet that comes again since nobody has answered the one before counts again.
func (r *Route) Came() (bySlot []uint64, all uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	total := r.total()
	for _, n := range total {
		all += n
	}
	return total[:min(len(r.berthOf), len(total))], all
}

// total is by slot, with those that are no more; nil: nobody knows.
func (r *Route) total() []uint64 {
	switch {
	case r.closed:
		return r.final
	case r.uncounted, len(r.groups) == 0 && r.programs == nil:
		return nil
	}
	total := added(make([]uint64, hash.MaxSlots), r.came)
	for _, g := range r.groups {
		came := g.Came()
		if came == nil {
			return nil
		}
		total = added(total, came)
	}
	return total
}

// added returns the sums.
func added(a, b []uint64) []uint64 {
	sum := make([]uint64, max(len(a), len(b)))
	copy(sum, a)
	for i, n := range b {
		sum[i] += n
	}
	return sum
}
