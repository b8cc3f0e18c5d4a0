package balancer

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/clientip"
)

// ledger counts what happens to connections, and reports it to Config.OnOutcome.
type ledger struct {
	table  *Table        // has the counts of each slot
	log    hclog.Logger  // limited, since clients cause the lines
	report func(Outcome) // nil: to nobody
	every  bool          // Config.EveryOutcome

	accepted, handedOff, takenBack, handedBack, refused, gone atomic.Uint64
}

// Stats are counts since the start, except Parked.
type Stats struct {
	Accepted   uint64 // connections accepted from listeners
	HandedOff  uint64 // given to workers; one that was taken back or handed back counts again
	TakenBack  uint64 // not taken by the worker that they were given to
	HandedBack uint64 // by workers, between two requests
	Refused    uint64 // ended for want of a worker, or of a request in time
	Gone       uint64 // ended by the client before it was known
	Parked     int    // waiting now
}

// Add adds the counts of another balancer.
func (s *Stats) Add(other Stats) {
	s.Accepted += other.Accepted
	s.HandedOff += other.HandedOff
	s.TakenBack += other.TakenBack
	s.HandedBack += other.HandedBack
	s.Refused += other.Refused
	s.Gone += other.Gone
	s.Parked += other.Parked
}

// stats returns the counts. They are not of one instant.
func (l *ledger) stats() Stats {
	return Stats{
		Accepted:   l.accepted.Load(),
		HandedOff:  l.handedOff.Load(),
		TakenBack:  l.takenBack.Load(),
		HandedBack: l.handedBack.Load(),
		Refused:    l.refused.Load(),
		Gone:       l.gone.Load(),
	}
}

// restore goes on with the counts of the program before.
func (l *ledger) restore(s Stats) {
	l.accepted.Store(s.Accepted)
	l.handedOff.Store(s.HandedOff)
	l.takenBack.Store(s.TakenBack)
	l.handedBack.Store(s.HandedBack)
	l.refused.Store(s.Refused)
	l.gone.Store(s.Gone)
}

// delivered counts that a slot's worker has taken n connections, and why no more. The slot's count is
// never behind the total.
func (l *ledger) delivered(c *counts, n int, err error) {
	c.handedOff.Add(uint64(n))
	l.handedOff.Add(uint64(n))
	if errors.Is(err, fdpass.ErrFull) && err != fdpass.ErrInFlight { // which is another worker's fault
		c.full.Add(1)
	}
}

// wereHandedBack counts connections that a slot's worker has handed back.
func (l *ledger) wereHandedBack(slot, n int) {
	l.table.counts(slot).handedBack.Add(uint64(n))
	l.handedBack.Add(uint64(n))
}

// hasWorker reports a connection that a worker has.
func (l *ledger) hasWorker(c *connection, slot int, w Worker) { l.tell(c, slot, w, nil) }

// wasRefused counts, logs and reports a connection that is refused.
func (l *ledger) wasRefused(c *connection, slot int, why error) {
	l.table.counts(slot).refused.Add(1)
	l.refused.Add(1)
	fields := []any{"peer", c.peer()}
	if slot != NoSlot {
		fields = append(fields, "client", addressText(c.client.Addr), "slot", slot)
	}
	l.log.Warn("connection refused", append(fields, "reason", why.Error())...)
	l.tell(c, slot, nil, why)
}

// isGone counts and reports a connection that its client has ended.
func (l *ledger) isGone(c *connection) {
	l.gone.Add(1)
	l.tell(c, NoSlot, nil, clientip.ErrGone)
}

// tell reports an outcome: w has the connection, or it has ended because of err.
func (l *ledger) tell(c *connection, slot int, w Worker, err error) {
	if l.report == nil {
		return
	}
	o := Outcome{Peer: c.Client, Client: c.client.Addr, Slot: slot, Worker: w, Err: err}
	if !c.since.IsZero() {
		o.Parked = time.Since(c.since)
	}
	l.report(o)
}
