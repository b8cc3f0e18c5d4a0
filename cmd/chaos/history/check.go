package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// Rule is what must be so.
type Rule string

// The rules, one for each promise that clients can see.
const (
	WrongSlot  Rule = "a key's slot"
	WrongPeer  Rule = "the worker sees its client"
	OneWorker  Rule = "a connection stays with its worker"
	Known      Rule = "only handfast's workers answer"
	Dead       Rule = "the dead do not answer"
	Generation Rule = "new connections go to the slot's generation"
	Cut        Rule = "no connection is cut"
	Refused    Rule = "nobody is refused whose slot is served"
	Answered   Rule = "each request is answered"
	Outlives   Rule = "a worker that was replaced ends"
	Two        Rule = "one worker in a slot and generation"
	ByItself   Rule = "no worker ends that nobody ends"
	DeedFails  Rule = "what is asked for is done"
	NotCalm    Rule = "in calm each slot is served"
)

// Rules are all of them.
var Rules = []Rule{WrongSlot, WrongPeer, OneWorker, Known, Dead, Generation, Cut, Refused, Answered, Outlives, Two, ByItself, DeedFails, NotCalm}

// Fault is what cannot be under the promises.
type Fault struct {
	Rule Rule
	At   time.Duration
	Text string
}

func (f Fault) String() string {
	return fmt.Sprintf("%.3fs %s: %s", f.At.Seconds(), f.Rule, f.Text)
}

// forever is after all that there is.
const forever = time.Duration(math.MaxInt64)

// checker has what several rules ask for again and again.
type checker struct {
	*History
	end       time.Duration // when handfast was told to stop
	processes map[int][]*Process
	served    map[*Process][]*Connection // by whose answers
	unknown   []*Connection              // made, and without an answer
	steps     []step                     // of the number of slots, in order
	faults    []Fault
}

// Check returns all that cannot be, in the order in which it was seen.
func Check(h *History) []Fault {
	c := &checker{History: h, end: forever, processes: make(map[int][]*Process), served: make(map[*Process][]*Connection)}
	c.index()
	for i := range h.Connections {
		conn := &h.Connections[i]
		c.checkSlot(conn)
		c.checkWho(conn)
		c.checkGeneration(conn)
		c.checkCut(conn)
		c.checkRefused(conn)
		c.checkAnswered(conn)
	}
	for i := range h.Processes {
		c.checkOutlives(&h.Processes[i])
		c.checkTwo(&h.Processes[i])
		c.checkByItself(&h.Processes[i])
	}
	c.checkDeeds()
	c.checkCalm()
	slices.SortStableFunc(c.faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return c.faults
}

func (c *checker) fault(rule Rule, at time.Duration, format string, args ...any) {
	c.faults = append(c.faults, Fault{rule, at, fmt.Sprintf(format, args...)})
}

func (c *checker) index() {
	n := c.Terms.Slots
	slices.SortStableFunc(c.Deeds, func(a, b Deed) int { return cmp.Compare(a.From, b.From) })
	for _, d := range c.Deeds {
		switch d.What {
		case Scale:
			c.steps = append(c.steps, step{d.From, d.To, n, d.Slots})
			n = d.Slots
		case End:
			c.end = d.From
		}
	}
	for i := range c.Processes {
		p := &c.Processes[i]
		c.processes[p.PID] = append(c.processes[p.PID], p)
	}
	for i := range c.Connections {
		conn := &c.Connections[i]
		switch by := c.serverOf(conn); {
		case by != nil:
			c.served[by] = append(c.served[by], conn)
		case conn.Connected > 0:
			c.unknown = append(c.unknown, conn)
		}
	}
}

// process is who had a pid at a time, and may have been seen a little later; nil: nobody, as far as was seen.
func (c *checker) process(pid int, at time.Duration) *Process {
	var last, next *Process
	for _, p := range c.processes[pid] {
		switch {
		case p.Seen <= at && (last == nil || p.Seen > last.Seen):
			last = p
		case p.Seen > at && p.Seen <= at+c.Terms.Slack && (next == nil || p.Seen < next.Seen):
			next = p
		}
	}
	if last == nil || next != nil && last.gone() < at {
		return next
	}
	return last
}

// serverOf is who has answered on a connection; nil: nobody.
func (c *checker) serverOf(conn *Connection) *Process {
	for _, r := range conn.Requests {
		if r.PID > 0 {
			return c.process(r.PID, r.Done)
		}
	}
	return nil
}

// gone is when a process was seen to be no more.
func (p *Process) gone() time.Duration {
	if p.Gone == 0 {
		return forever
	}
	return p.Gone
}
