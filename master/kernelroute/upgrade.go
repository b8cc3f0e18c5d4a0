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

// Saved is what the next program needs to go on with slots that the kernel gives clients to.
type Saved struct {
	Groups []savedGroup
	Berths []savedBerth
	At     []int // by slot: the berth that its clients come to
	Served bool
}

type savedGroup struct {
	reuseport.Saved
	IPv4Of int // of which group it is the one for IPv4 alone; -1: of none
}

type savedBerth struct {
	Slot          int
	Leases        []savedLease
	Used, Spoiled bool
	Left          time.Time
}

type savedLease struct{ Slot, PID int }

func (s *Route) Save(b *reexec.Bundle) *Saved {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := &Saved{Served: s.served}
	for _, g := range s.groups {
		entry := savedGroup{Saved: g.Save(b), IPv4Of: -1}
		for of, both := range s.groups {
			if s.ipv4[both] == g {
				entry.IPv4Of = of
			}
		}
		state.Groups = append(state.Groups, entry)
	}
	for _, b := range s.berths {
		entry := savedBerth{Slot: b.slot, Used: b.used, Spoiled: b.spoiled, Left: b.left}
		for _, l := range b.leases {
			entry.Leases = append(entry.Leases, savedLease{l.slot, l.pid})
		}
		state.Berths = append(state.Berths, entry)
	}
	for _, b := range s.at {
		state.At = append(state.At, b.number)
	}
	return state
}

func (s *Saved) Restore(b *reexec.Bundle, config hash.Config) (groups []*reuseport.Group, err error) {
	for _, entry := range s.Groups {
		g, err := reuseport.Restore(b, entry.Saved, config)
		if err != nil {
			return groups, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// Restore puts back what was known of the groups, which New was given.
func (s *Route) Restore(state *Saved) error {
	n := len(state.Berths)
	if len(state.Groups) == 0 && !s.follows || n == 0 || slices.ContainsFunc(state.Groups, func(g savedGroup) bool { return len(g.Members) != n }) ||
		len(state.At) == 0 || slices.Min(state.At) < 0 || slices.Max(state.At) >= n {
		return fmt.Errorf("kernelroute: %d listeners for slots at %v: that cannot be", n, state.At)
	}
	s.served = state.Served
	for i, entry := range state.Groups {
		if of := entry.IPv4Of; of >= 0 && of < len(s.groups) {
			s.ipv4[s.groups[of]] = s.groups[i]
			s.retireSoon()
		}
	}
	s.berths = nil
	for i, entry := range state.Berths {
		b := newBerth(i, entry.Slot)
		b.used, b.spoiled, b.left = entry.Used, entry.Spoiled, entry.Left
		for _, l := range entry.Leases {
			b.leases = append(b.leases, &Lease{route: s, berth: b, slot: l.Slot, pid: l.PID})
		}
		s.berths = append(s.berths, b)
	}
	s.at = nil
	for _, i := range state.At {
		s.at = append(s.at, s.berths[i])
	}
	s.filled = make([]supervisor.Link, len(s.at))
	return nil
}
