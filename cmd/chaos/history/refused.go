package history

import (
	"fmt"
	"net/http"
	"slices"
	"time"
)

// checkRefused: 502 comes after Terms.Patience in which the slot had nobody, and not sooner; nothing else refuses here. Three things cannot be, therefore. (1) It came too soon.
// (2) Nothing kept the slot from serving for all of that time. (3) Somebody served the slot meanwhile, who then neither died nor stood still nor was replaced: who
// waits for a slot gets its worker at once.
//
// With --worker-link any, who waits for a worker that dies while a reload replaces it, or when it has failed on its probation, is answered at once: the other worker has a
// listener of its own already.
func (c *checker) checkRefused(conn *Connection) {
	for i, r := range conn.Requests {
		if r.Err != "" || r.Status == http.StatusOK {
			continue
		}
		slots := c.slots(conn, conn.Dial, r.Done)
		waited := r.Done - conn.Dial
		if c.Terms.Link == "any" && r.Status == http.StatusBadGateway && i == 0 && c.replacing(slots, r.Done) && c.hindered(slots, conn.Dial-c.Terms.Start, r.Done) > 0 {
			continue
		}
		switch witness := c.witness(slots, conn.Dial, r.Done); {
		case r.Status != http.StatusBadGateway || i > 0:
			c.fault(Refused, r.Done, "connection %d of %v: %s was answered with status %d by worker %d", conn.ID, conn.Key, r.Path, r.Status, r.PID)
		case waited < c.Terms.Patience*9/10:
			c.fault(Refused, r.Done, "connection %d of %v was answered 502 after %v only", conn.ID, conn.Key, waited)
		case c.hindered(slots, conn.Dial-c.Terms.Start, r.Done) == 0:
			c.fault(Refused, r.Done, "connection %d of %v, made at %.3fs, was answered 502, and nothing has happened to slot %v", conn.ID, conn.Key, conn.Dial.Seconds(), slots)
		case witness != "":
			c.fault(Refused, r.Done, "connection %d of %v, made at %.3fs, was answered 502, but %s", conn.ID, conn.Key, conn.Dial.Seconds(), witness)
		}
	}
}

// replacing tells whether a worker of these slots is being replaced, or was shortly before.
func (c *checker) replacing(slots []int, at time.Duration) bool {
	return slices.ContainsFunc(c.Deeds, func(d Deed) bool {
		return (d.What == Reload || d.What == Replace && slices.Contains(slots, d.Slot)) && d.From <= at && at <= d.To+c.Terms.Slack
	})
}

// witness says who could have served a slot between two times; empty: nobody that is certain.
func (c *checker) witness(slots []int, from, to time.Duration) string {
	if len(slots) != 1 || c.during(from, to, Reload, Replace, Scale, Memory, Broken) {
		return ""
	}
	for p, all := range c.served {
		if p.Slot != slots[0] || p.gone() <= to+c.Terms.Slack {
			continue
		}
		for _, conn := range all {
			if r := conn.Requests[0]; conn.Dial >= from && r.PID > 0 && r.Done <= to-c.Terms.Slack && c.stopped(p.PID, conn.Dial, to) == 0 {
				return fmt.Sprintf("worker %d of this slot has answered connection %d at %.3fs, and nothing has happened to it", p.PID, conn.ID, r.Done.Seconds())
			}
		}
	}
	return ""
}

// checkAnswered: each request is answered in the time that it is asked to take, and some that machines need; by then at the latest that it has lost by what was done
// to its slot, and by Terms.Patience when the slot was empty.
func (c *checker) checkAnswered(conn *Connection) {
	for i, r := range conn.Requests {
		from, within := conn.Dial, r.Takes+c.Terms.Answer+c.Terms.Patience
		if i > 0 {
			from = r.Sent
		}
		slots := c.slots(conn, conn.Dial, conn.placed())
		if by := c.serverOf(conn); by != nil {
			slots = append(slots, by.Slot)
		}
		if within += c.hindered(slots, from, r.Done); r.Done-from > within {
			c.fault(Answered, r.Done, "connection %d of %v: %s took %.3fs from %.3fs on, and %.3fs explain themselves: %s", conn.ID, conn.Key, r.Path, (r.Done - from).Seconds(), from.Seconds(), within.Seconds(), r.Err)
		}
	}
}
