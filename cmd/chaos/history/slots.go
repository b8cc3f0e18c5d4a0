package history

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/handfast/handfast/hash"
)

// step is a change of the number of slots.
type step struct {
	from, to time.Duration
	of, n    int // before and behind
}

// numbers are the least and the most slots that there were at some time between two.
func (c *checker) numbers(from, to time.Duration) (least, most int) {
	least, most = math.MaxInt, 0
	add := func(n int) { least, most = min(least, n), max(most, n) }
	since, n := time.Duration(0), c.Terms.Slots
	for _, s := range c.steps {
		if since <= to && s.from >= from {
			add(n)
		}
		if s.from <= to && s.to >= from { // slots are added one by one
			add(s.of)
			add(s.n)
		}
		since, n = s.to, s.n
	}
	if since <= to {
		add(n)
	}
	return least, most
}

// slots are those where a client could belong at some time between two.
func (c *checker) slots(conn *Connection, from, to time.Duration) (all []int) {
	key := hash.DefaultConfig().Key(conn.Key)
	least, most := c.numbers(from, to)
	for n := least; n <= most; n++ {
		if slot := key.Slot(n); !slices.Contains(all, slot) {
			all = append(all, slot)
		}
	}
	return all
}

// during tells whether something of this kind was done between two times.
func (c *checker) during(from, to time.Duration, what ...What) bool {
	return slices.ContainsFunc(c.Deeds, func(d Deed) bool { return d.From <= to && d.To >= from && slices.Contains(what, d.What) })
}

// stopped is for how long a process, or the master, stood still between two times.
func (c *checker) stopped(pid int, from, to time.Duration) time.Duration {
	return c.union(from, to, func(d Deed) (since, until time.Duration, counts bool) {
		return d.From, d.To, d.What == Stop && (d.PID == pid || d.PID == 0) || d.What == Memory
	})
}

// union is how much time between two is covered by deeds.
func (c *checker) union(from, to time.Duration, covers func(Deed) (since, until time.Duration, counts bool)) (sum time.Duration) {
	type span struct{ from, to time.Duration }
	var spans []span
	for _, d := range c.Deeds {
		if since, until, counts := covers(d); counts && since < to && until > from {
			spans = append(spans, span{max(since, from), min(until, to)})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	at := from
	for _, s := range spans {
		if s.to > at {
			sum += s.to - max(s.from, at)
			at = s.to
		}
	}
	return sum
}

// hindered is for how much of the time between two a slot could not serve, at most. A worker that has died leaves its slot empty until the next
// one has started; one that is stopped serves nobody; the master, stopped, gives nobody anything. When memory is short each can be.
func (c *checker) hindered(slots []int, from, to time.Duration) time.Duration {
	return c.union(from, to, func(d Deed) (since, until time.Duration, counts bool) {
		since, until = d.From, d.To+c.Terms.Slack
		switch d.What {
		case Kill:
			until = d.To + c.Terms.Start
			counts = slices.Contains(slots, c.slotOf(d.PID, d.From))
		case Stop:
			counts = d.PID == 0 || slices.Contains(slots, c.slotOf(d.PID, d.From))
		case Memory, Broken:
			until, counts = d.To+c.Terms.Start, true
		}
		return since, until, counts
	})
}

func (c *checker) slotOf(pid int, at time.Duration) int {
	if p := c.process(pid, at); p != nil {
		return p.Slot
	}
	return -1
}
