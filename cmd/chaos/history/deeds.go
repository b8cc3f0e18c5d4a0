package history

import (
	"cmp"
	"net/http"
	"slices"
	"time"
)

// checkDeeds: what handfast is asked to do is done, unless a worker died or stood still meanwhile or shortly before, or memory was short. It stops
// when it is told to, and not before.
func (c *checker) checkDeeds() {
	for _, d := range c.Deeds {
		if d.Err == "" {
			if d.What == Reload && c.within(d, Broken) {
				c.fault(DeedFails, d.To, "the reload that was begun at %.3fs has succeeded, and no worker came up", d.From.Seconds())
			}
			continue
		}
		if d.What == End || !c.during(d.From-c.Terms.Start, d.To, Kill, Stop, Memory, Broken) {
			c.fault(DeedFails, d.To, "%s, begun at %.3fs: %s", d.What, d.From.Seconds(), d.Err)
		}
	}
}

// within tells whether something is done for as long as a deed takes.
func (c *checker) within(d Deed, what What) bool {
	return slices.ContainsFunc(c.Deeds, func(e Deed) bool { return e.What == what && e.From <= d.From && e.To >= d.To })
}

// checkCalm: when nothing is done any more, and what was done is over (Terms.Start after the beginning of the calm), each slot has one worker, which serves
// all connections that are made then.
func (c *checker) checkCalm() {
	var since time.Duration
	for _, d := range c.Deeds {
		if d.What == Calm {
			since = d.From + c.Terms.Start
		}
	}
	if since == 0 {
		return
	}
	by := make(map[int]int)
	for i := range c.Connections {
		conn := &c.Connections[i]
		if conn.Dial < since || len(conn.Requests) == 0 {
			continue
		}
		r := conn.Requests[0]
		if r.Status != http.StatusOK {
			c.fault(NotCalm, r.Done, "connection %d of %v: status %d, %s", conn.ID, conn.Key, r.Status, r.Err)
			continue
		}
		if by[r.Slot] = cmp.Or(by[r.Slot], r.PID); by[r.Slot] != r.PID {
			c.fault(NotCalm, r.Done, "slot %d is served by worker %d and by worker %d", r.Slot, by[r.Slot], r.PID)
		}
	}
}
