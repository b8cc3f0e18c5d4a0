package kernelroute

import (
	"fmt"
	"slices"
	"time"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// Saved is what the next program needs in order to go on with a Route.
type Saved struct {
	Groups []savedGroup
	Berths []savedBerth
	At     []int // by slot: the number of the berth that its clients come to
	Served bool
}

// SavedCounts is what the next program needs in order to go on counting.
type SavedCounts struct {
	Programs  []*reuseport.SavedProgram // of the groups
	Came      []uint64                  // by slot, to groups that are no more
	Uncounted bool                      // there was one that nobody has counted
}

type savedGroup struct {
	reuseport.Saved
	IPv4Of int // the group in whose place this one is, for IPv4 alone; -1: in none's
}

type savedBerth struct {
	Slot          int
	Leases        []savedLease
	Used, Spoiled bool
	Left          time.Time
}

type savedLease struct{ Slot, PID int }

// Save keeps the listeners and says what is known of them.
func (r *Route) Save(b *reexec.Bundle) *Saved {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := &Saved{Served: r.served}
	for _, g := range r.groups {
		entry := savedGroup{Saved: g.Save(b), IPv4Of: -1}
		for of, both := range r.groups {
			if r.ipv4[both] == g {
				entry.IPv4Of = of
			}
		}
		state.Groups = append(state.Groups, entry)
	}
	for _, b := range r.berths {
		entry := savedBerth{Slot: b.slot, Used: b.used, Spoiled: b.spoiled, Left: b.left}
		for _, l := range b.leases {
			entry.Leases = append(entry.Leases, savedLease{l.slot, l.pid})
		}
		state.Berths = append(state.Berths, entry)
	}
	for _, b := range r.berthOf {
		state.At = append(state.At, b.number)
	}
	return state
}

// SaveCounts keeps what counts; nil: nobody does. Call it after Save.
func (r *Route) SaveCounts(b *reexec.Bundle) *SavedCounts {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total() == nil {
		return nil
	}
	state := &SavedCounts{Came: r.came, Uncounted: r.uncounted}
	for _, g := range r.groups {
		state.Programs = append(state.Programs, g.SaveCounting(b))
	}
	return state
}

// Restore makes the groups, which the caller owns, also on error. Counts are nil if the program before has saved none. It borrows the
// programs.
func (s *Saved) Restore(b *reexec.Bundle, config hash.Config, counts *SavedCounts, programs *reuseport.Programs) (groups []*reuseport.Group, err error) {
	for i, entry := range s.Groups {
		var counting *reuseport.SavedProgram
		if counts != nil && i < len(counts.Programs) {
			counting = counts.Programs[i]
		}
		g, err := reuseport.Restore(b, entry.Saved, config, counting, programs)
		if err != nil {
			return groups, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// Restore puts back what the program before knew of the groups that New was given; counts are nil if it did not count. Call it before
// anything else. How long connections have waited is not saved: patience begins anew.
func (r *Route) Restore(state *Saved, counts *SavedCounts) error {
	n := len(state.Berths)
	if len(state.Groups) == 0 && !r.follows || n == 0 || slices.ContainsFunc(state.Groups, func(g savedGroup) bool { return len(g.Members) != n }) ||
		len(state.At) == 0 || slices.Min(state.At) < 0 || slices.Max(state.At) >= n {
		return fmt.Errorf("kernelroute: %d listeners for slots at %v: that cannot be", n, state.At)
	}
	r.served = state.Served
	if counts != nil {
		r.came, r.uncounted = counts.Came, counts.Uncounted
	}
	for i, entry := range state.Groups {
		if of := entry.IPv4Of; of >= 0 && of < len(r.groups) {
			r.ipv4[r.groups[of]] = r.groups[i]
			r.retireSoon()
		}
	}
	r.berths = nil
	for i, entry := range state.Berths {
		b := newBerth(i, entry.Slot)
		b.used, b.spoiled, b.left = entry.Used, entry.Spoiled, entry.Left
		for _, l := range entry.Leases {
			b.leases = append(b.leases, &Lease{route: r, berth: b, slot: l.Slot, pid: l.PID, over: true}) // until RestoreLink
		}
		r.berths = append(r.berths, b)
	}
	r.berthOf = nil
	for _, i := range state.At {
		r.berthOf = append(r.berthOf, r.berths[i])
	}
	r.filled = make([]supervisor.Link, len(r.berthOf))
	return nil
}
