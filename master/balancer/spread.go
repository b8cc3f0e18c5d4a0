package balancer

import "github.com/handfast/handfast/master/clientip"

// spread gives connections that belong to no slot in particular, since they begin a session whose id will name its worker
// (forwarded.Rules.Anywhere), to the slot whose worker has the fewest connections open; if workers do not say how many they have, to
// one slot after the other.
func (b *Balancer) spread(c *connection) {
	c.assigned = false // of one that has come back
	if !b.cfg.Clients.Rules.Anywhere || c.addressed || c.client.Told || c.client.Name != (clientip.Name{}) {
		return
	}
	seats := b.table.load()
	turn := turnOf(b.turn.Add(1), len(seats))
	c.slot, c.assigned = turn, true
	for i, fewest := 0, -1; i < len(seats); i++ {
		slot := (turn + i) % len(seats)
		if seats[slot].worker == nil {
			continue
		}
		if open, ok := seats[slot].open(); fewest < 0 || ok && open < fewest {
			c.slot, fewest = slot, open
		}
	}
}

// turnOf returns whose turn it is among so many slots. Each has one in a round, and each round begins elsewhere: if every second request
// begins a session, these are still not for every second slot.
func turnOf(n uint32, slots int) int {
	round, at := n/uint32(slots), n%uint32(slots)
	round = (round ^ round>>16) * 0x7feb352d // of a hash by Chris Wellons, "lowbias32"
	round = (round ^ round>>15) * 0x846ca68b
	return int((uint64(round^round>>16) + uint64(at)) % uint64(slots))
}

// open returns how many connections the slot's worker has open; ok is false if that is not known.
func (s *seat) open() (n int, ok bool) {
	if w, tells := s.worker.(Opener); tells {
		return w.OpenConnections()
	}
	return 0, false
}
