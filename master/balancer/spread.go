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
	turn := int(b.turn.Add(1) % uint32(len(seats)))
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

// open returns how many connections the slot's worker has open; ok is false if that is not known.
func (s *seat) open() (n int, ok bool) {
	if w, tells := s.worker.(Opener); tells {
		return w.OpenConnections()
	}
	return 0, false
}
