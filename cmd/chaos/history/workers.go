package history

import (
	"slices"
	"time"
)

// released is when a worker's slot was given to somebody else, or to nobody, at the earliest and at the latest. A reload does so, or
// a replacement, each of which may put it back if it fails, and fewer slots. Which worker goes in a replacement nobody knows: an older one.
func (c *checker) released(p *Process) (earliest, latest time.Duration) {
	earliest, latest = forever, forever
	late := c.Terms.Slack / 4 // who was being started then may be seen a little later
	for _, d := range c.Deeds {
		switch {
		case d.To+late < p.Seen:
		case d.What == Reload && (d.Generation == 0 || d.Generation > p.Generation),
			d.What == Replace && d.Slot == p.Slot && p.Seen <= d.From,
			d.What == Scale && d.Slots <= p.Slot && p.Seen <= d.To+late:
			earliest = min(earliest, d.From)
			if d.Err == "" && p.Seen <= d.From {
				latest = min(latest, d.To)
			}
		case (d.What == Reload || d.What == Replace) && d.Err != "": // it is one that was started, and has failed
			earliest = min(earliest, d.From)
		}
	}
	return earliest, latest
}

// killed is when a process was killed, at the earliest. It can be some seconds before it has gone, when memory is short.
func (c *checker) killed(p *Process) time.Duration {
	if p.Gone > 0 && c.whyDead(p) == wasKilled {
		for _, d := range c.Deeds {
			if d.What == Kill && d.PID == p.PID && d.From >= p.Seen || d.What == Memory && d.From <= p.Gone && p.Seen <= d.To {
				return d.From
			}
		}
	}
	return forever
}

const (
	wasKilled = "it was killed"
	wasLetGo  = "it was replaced"

	wasNotReady = "it was not ready"
)

// whyDead says why a process may have died; empty: nothing says so.
func (c *checker) whyDead(p *Process) string {
	if p.Gone == 0 || p.Gone >= c.end {
		return wasLetGo
	}
	for _, d := range c.Deeds {
		if d.What == Kill && d.PID == p.PID && d.From >= p.Seen && d.From <= p.Gone || d.What == Memory && d.From <= p.Gone && p.Seen <= d.To && p.Gone <= d.To+c.Terms.Slack {
			return wasKilled
		}
	}
	if earliest, _ := c.released(p); earliest <= p.Gone {
		return wasLetGo
	}
	if c.during(p.Seen, p.Seen, Broken) || c.during(p.Seen-c.Terms.Slack, p.Gone, Upgrade) && c.served[p] == nil {
		return wasNotReady
	}
	return ""
}

// checkByItself: a worker ends when it is killed, when another one has its place, when its slot is removed, and when handfast stops. A new one
// that a reload or replacement has started ends, too, when that fails; one that is not ready ends in an upgrade; and those of a broken version end by themselves.
func (c *checker) checkByItself(p *Process) {
	if c.whyDead(p) == "" {
		c.fault(ByItself, p.Gone, "worker %d, slot %d, generation %d, has ended, and nobody has killed or replaced it", p.PID, p.Slot, p.Generation)
	}
}

// checkOutlives: a worker that was replaced, or whose slot was removed, ends when its last connection has ended (Terms.Leave), and at the latest
// after --drain-timeout and --kill-timeout, but for the time that it stood still, or the master, which has to see that: in an upgrade, too. What it may have accepted without having
// answered counts as its own for as long as it was open.
func (c *checker) checkOutlives(p *Process) {
	_, since := c.released(p)
	if since == forever {
		return
	}
	free := since
	for _, list := range [][]*Connection{c.served[p], c.unknown} {
		for _, conn := range list {
			if c.serverOf(conn) == p || slices.Contains(c.slots(conn, conn.Dial, conn.placed()), p.Slot) && conn.Dial <= since {
				free = max(free, conn.Closed)
			}
		}
	}
	due := min(free+c.Terms.Leave, since+c.Terms.Drain+c.Terms.Kill+c.Terms.Slack)
	last := min(p.gone(), c.end)
	nobodyLooked := c.union(since, last, func(d Deed) (since, until time.Duration, counts bool) {
		return d.From, d.To, d.What == Stop && (d.PID == p.PID || d.PID == 0) || d.What == Memory || d.What == Upgrade
	})
	if late := last - due - nobodyLooked; late > 0 {
		c.fault(Outlives, last, "worker %d, slot %d, generation %d, was replaced at %.3fs, was free at %.3fs, and is there %.3fs later than it may", p.PID, p.Slot, p.Generation,
			since.Seconds(), free.Seconds(), late.Seconds())
	}
}

// checkTwo: a slot has one worker of a generation: the next one is started when it has died. Who was let go before (a slot that was removed and is back, or a replacement, which has the same
// generation) does not count. What was seen of two processes differs by Terms.Slack at most.
func (c *checker) checkTwo(p *Process) {
	earliest, _ := c.released(p)
	for i := range c.Processes {
		q := &c.Processes[i]
		if p == q || p.Slot != q.Slot || p.Generation != q.Generation || q.Seen < p.Seen || q.Seen == p.Seen && q.PID < p.PID {
			continue
		}
		if q.Seen+c.Terms.Slack < min(p.gone(), q.gone(), earliest) {
			c.fault(Two, q.Seen, "slot %d has worker %d and worker %d of generation %d, from %.3fs to %.3fs", p.Slot, p.PID, q.PID, p.Generation, q.Seen.Seconds(), min(p.gone(), q.gone(), c.end).Seconds())
		}
	}
}
