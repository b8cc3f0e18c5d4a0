package history

import (
	"slices"
	"time"
)

// checkCut: a connection goes on until its worker has died, or has been replaced and is past its time (--drain-timeout). Before it has answered nobody knows whose a
// connection was; it is cut rightly if a worker of its slot died meanwhile, which can have accepted it. When memory is short one can be killed before
// it was seen. Nothing else cuts: not a reload, not other slots, not an upgrade. Between two
// requests a worker that was replaced may close a connection that nobody has used for a while (Terms.Idle), and the next request can be under way then.
// Nobody is ever refused by the kernel, since handfast listens all the time.
func (c *checker) checkCut(conn *Connection) {
	if conn.Err != "" {
		c.fault(Cut, conn.Closed, "connection %d of %v cannot be made at %.3fs: %s", conn.ID, conn.Key, conn.Dial.Seconds(), conn.Err)
	}
	by := c.serverOf(conn)
	for i, r := range conn.Requests {
		if r.Err == "" || r.Late {
			continue
		}
		if by == nil {
			if !c.during(conn.Dial, r.Done, Memory) && !c.someDied(c.slots(conn, conn.Dial, r.Done), conn.Dial, r.Done) {
				c.fault(Cut, r.Done, "connection %d of %v, made at %.3fs: no answer to %s: %s; no worker of its slot died meanwhile", conn.ID, conn.Key, conn.Dial.Seconds(), r.Path, r.Err)
			}
			continue
		}
		earliest, _ := c.released(by)
		pause := forever
		if i > 0 {
			pause = r.Sent - conn.Requests[i-1].Done
		}
		switch {
		case c.killed(by) <= r.Done:
		case earliest != forever && earliest+c.Terms.Drain <= r.Done:
		case i > 0 && r.Read == 0 && earliest <= r.Done && c.Terms.Idle > 0 && pause >= c.Terms.Idle/2: // the worker counts from elsewhere on, and may be late

		default:
			c.fault(Cut, r.Done, "connection %d of %v with worker %d: %d bytes of an answer to %s, which was sent at %.3fs, %.3fs after the last one: %s", conn.ID, conn.Key, by.PID, r.Read, r.Path,
				r.Sent.Seconds(), (min(pause, time.Hour)).Seconds(), r.Err)
		}
	}
}

// someDied tells whether a worker of one of these slots was killed between two times.
func (c *checker) someDied(slots []int, from, to time.Duration) bool {
	return slices.ContainsFunc(c.Processes, func(p Process) bool {
		return slices.Contains(slots, p.Slot) && p.gone() >= from && p.Seen <= to && c.killed(&p) <= to
	})
}
