package history

import (
	"cmp"
	"slices"
	"time"
)

// placed is when the slot of a connection was chosen, at the latest.
func (c *Connection) placed() time.Duration {
	if len(c.Requests) > 0 {
		return c.Requests[0].Done
	}
	return c.Closed
}

// checkSlot: the same key goes to the same slot, which the number of slots gives. That number changes while it is asked to (Scale), and slots come
// into use one by one. A connection stays where it was placed, which was between its beginning and its first answer; an answer that came before the
// end of that says it exactly.
func (c *checker) checkSlot(conn *Connection) {
	for _, r := range conn.Requests {
		if r.PID == 0 {
			continue
		}
		if may := c.slots(conn, conn.Dial, conn.placed()); !slices.Contains(may, r.Slot) {
			c.fault(WrongSlot, r.Done, "connection %d of %v was answered in slot %d by worker %d, and belongs to %v", conn.ID, conn.Key, r.Slot, r.PID, may)
		}
	}
}

// checkWho: the worker serves the client's own socket, so it sees the client's address, and all requests of a connection are the same worker's. It is one that
// was started by the master, in the slot and generation which it says that it is of. A process that is dead has answered before it died:
// its answer may come later, but not to a request that was made when it was seen to be dead.
func (c *checker) checkWho(conn *Connection) {
	first := 0
	for _, r := range conn.Requests {
		if r.PID == 0 {
			continue
		}
		if r.Client != conn.Key {
			c.fault(WrongPeer, r.Done, "worker %d takes %v of connection %d for %v", r.PID, conn.Key, conn.ID, r.Client)
		}
		if first = cmp.Or(first, r.PID); r.PID != first {
			c.fault(OneWorker, r.Done, "connection %d was answered by worker %d, and then by worker %d", conn.ID, first, r.PID)
		}
		p := c.process(r.PID, r.Done)
		switch {
		case p == nil && !c.during(conn.Dial, r.Done, Memory): // then one can have been killed before it was seen
			c.fault(Known, r.Done, "nobody knows worker %d, which has answered on connection %d", r.PID, conn.ID)
		case p == nil:
		case p.Slot != r.Slot || p.Generation != r.Generation:
			c.fault(Known, r.Done, "worker %d says slot %d, generation %d, and was started for slot %d, generation %d", r.PID, r.Slot, r.Generation, p.Slot, p.Generation)
		case r.Sent > p.gone():
			c.fault(Dead, r.Done, "worker %d was dead at %.3fs, and answers a request on connection %d of %.3fs", r.PID, p.Gone.Seconds(), conn.ID, r.Sent.Seconds())
		}
	}
}

// checkGeneration: a reload that has succeeded has given each slot to a worker of its generation or a later one. A connection that was begun after that cannot
// have come to an older one (the older ones' listeners and mailboxes get nothing any more); one that was begun before can lie there for as long as the worker
// is stopped. And no generation answers before the reload that starts it.
func (c *checker) checkGeneration(conn *Connection) {
	for i, r := range conn.Requests {
		if r.PID == 0 || i > 0 {
			continue
		}
		least, most := 1, 1
		for _, d := range c.Deeds {
			if d.What != Reload || d.Generation == 0 {
				continue
			}
			if d.Err == "" && d.To <= conn.Dial {
				least = max(least, d.Generation)
			}
			if d.From <= r.Done {
				most = max(most, d.Generation)
			}
		}
		if r.Generation < least || r.Generation > most {
			c.fault(Generation, r.Done, "connection %d of %.3fs was answered by worker %d of generation %d; generations are %d to %d",
				conn.ID, conn.Dial.Seconds(), r.PID, r.Generation, least, most)
		}
	}
}
