package master

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// adviceAfter is how long a worker may take until the log says what it is waited for.
	adviceAfter = 5 * time.Second
	// adviceInterval is the time between two lines of advice at least.
	adviceInterval = 10 * time.Second
)

// advice says what would help workers that fail for a reason that we know, and, of the first one of each
// generation, what a worker that is not ready is waited for. A goroutine runs for each such worker;
// all end with close.
type advice struct {
	ctx     context.Context
	end     context.CancelFunc
	looking sync.WaitGroup

	// Of handleEvent, which one goroutine calls.
	generation int                // of the last worker that is, or was, waited for
	waiting    int                // its pid
	stop       context.CancelFunc // and ends that
	failedAt   time.Time          // when a failure was looked into last

	slow, failed func(supervisor.Event)
}

func newAdvice(slow, failed func(supervisor.Event)) *advice {
	a := &advice{slow: slow, failed: failed, stop: func() {}}
	a.ctx, a.end = context.WithCancel(context.Background())
	return a
}

// handleEvent is told what happens to workers.
func (a *advice) handleEvent(e supervisor.Event) {
	switch e.Kind {
	case supervisor.WorkerStarted:
		if e.Generation > a.generation {
			a.stop()
			a.generation, a.waiting = e.Generation, e.PID
			ctx, stop := context.WithCancel(a.ctx)
			a.stop = stop
			a.looking.Go(func() { a.wait(ctx, e) })
		}
	case supervisor.WorkerReady, supervisor.WorkerNotReady, supervisor.WorkerLeft, supervisor.WorkerTerminated, supervisor.WorkerExited:
		if e.PID == a.waiting {
			a.stop()
		}
		if e.Kind == supervisor.WorkerExited && e.Failed() && time.Since(a.failedAt) >= adviceInterval {
			a.failedAt = time.Now()
			a.looking.Go(func() { a.failed(e) })
		}
	}
}

func (a *advice) wait(ctx context.Context, e supervisor.Event) {
	select {
	case <-time.After(adviceAfter):
		a.slow(e)
	case <-ctx.Done():
	}
}

func (a *advice) close() {
	a.end()
	a.looking.Wait()
}

// adviseSlow says what a worker is waited for. If it listens elsewhere the log says so, too (elsewhere).
func (m *Master) adviseSlow(e supervisor.Event) {
	if known(e.Link).isServed() {
		return
	}
	m.log.Info("worker is not ready yet", "slot", e.Slot, "pid", e.PID, "generation", e.Generation, "link", m.kind.name, "waits_for", m.kind.waitsFor, "remedy", m.kind.notReady)
}

// adviseFailed says which address a worker could not have, if it failed for that.
func (m *Master) adviseFailed(e supervisor.Event) {
	where := []any{"slot", e.Slot, "pid", e.PID, "generation", e.Generation}
	command := programs.Resolve(m.command)
	port, inUse := programs.AddressInUse(e.LastWords)
	for _, at := range m.wanted(e.Link, port) {
		if other := m.holder(e, at); other != nil {
			m.log.Warn("worker cannot have an address of its own that another one has", append(where, "network", at.Network, "address", listenFlag(at.AddrPort),
				"other_slot", other.Slot, "other_pid", other.PID, "remedy", command.OwnAddress(at.Network, at.Port()))...)
			return
		}
	}
	ours := func(at netip.AddrPort) bool { return at.Port() == port }
	switch {
	case !inUse:
	case !m.kind.binds && slices.ContainsFunc(m.route.addresses(), ours):
		m.log.Warn("worker binds the port beside its link", append(where, "link", m.kind.name, "port", port,
			"remedy", "--worker-link any if it listens by itself")...)
	default:
		remedy := command.OwnAddress("tcp", port)
		if !m.kind.binds {
			remedy = "--worker-link any if it listens by itself on handfast's port; else " + remedy
		}
		m.log.Warn("worker cannot have an address that is in use", append(where, "port", port, "remedy", remedy)...)
	}
}

// wanted returns addresses that a worker may have failed to get, the likeliest first: those with the port
// that it named, and those that it has asked for, the last one first.
func (m *Master) wanted(link supervisor.Link, port uint16) (all []foreign.OwnAddress) {
	if asked := known(link).asked; asked != nil {
		all = asked()
	}
	slices.Reverse(all)
	named := func(at foreign.OwnAddress) int { return int(min(at.Port()^port, 1)) }
	slices.SortStableFunc(all, func(a, b foreign.OwnAddress) int { return named(a) - named(b) })
	ours := func(at netip.AddrPort) bool { return at.Port() == port }
	if len(all) == 0 && port != 0 && !slices.ContainsFunc(m.route.addresses(), ours) {
		all = []foreign.OwnAddress{
			{Network: "tcp", AddrPort: netip.AddrPortFrom(netip.IPv6Unspecified(), port)},
			{Network: "udp", AddrPort: netip.AddrPortFrom(netip.IPv6Unspecified(), port)},
		}
	}
	return all
}

// holder returns another worker that has a socket there; nil: none.
func (m *Master) holder(e supervisor.Event, at foreign.OwnAddress) *supervisor.WorkerStatus {
	snapshot, _ := m.supervisor.Snapshot()
	for _, slot := range snapshot.Slots {
		for _, w := range []*supervisor.WorkerStatus{slot.Worker, slot.Next, slot.Standby} {
			if w != nil && w.PID != e.PID && listening.Holds(w.PID, at.Network, at.Port()) {
				return w
			}
		}
	}
	return nil
}
