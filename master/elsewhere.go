package master

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/supervisor"
)

// elsewhereInterval is the time between two looks at where a worker listens that is not ready. The log
// names what two looks have seen, so a server has that long to listen first for its metrics, say.
const elsewhereInterval = 750 * time.Millisecond

// elsewhere notices workers that are not ready because they listen somewhere else than handfast
// does: on another port, on localhost, or with another socket than the one that they were given. A
// goroutine runs for each worker that starts, until that is ready or has ended; all end with ctx.
type elsewhere struct {
	ctx     context.Context
	end     context.CancelFunc
	looking sync.WaitGroup
	stop    map[int]context.CancelFunc // by pid; of handleEvent
	listens func(pid int) []netip.AddrPort
	ours    func(netip.AddrPort) bool
	found   func(e supervisor.Event, at []netip.AddrPort)
}

// newElsewhere makes one that calls found, once for a worker, with addresses that are not ours.
func newElsewhere(ours func(netip.AddrPort) bool, found func(supervisor.Event, []netip.AddrPort)) *elsewhere {
	w := &elsewhere{stop: make(map[int]context.CancelFunc), listens: listening.Listens, ours: ours, found: found}
	w.ctx, w.end = context.WithCancel(context.Background())
	return w
}

// handleEvent is told what happens to workers.
func (w *elsewhere) handleEvent(e supervisor.Event) {
	switch e.Kind {
	case supervisor.WorkerStarted:
		ctx, stop := context.WithCancel(w.ctx)
		w.stop[e.PID] = stop
		w.looking.Go(func() { w.look(ctx, e) })
	case supervisor.WorkerReady, supervisor.WorkerNotReady, supervisor.WorkerLeft, supervisor.WorkerTerminated, supervisor.WorkerExited:
		if stop, ok := w.stop[e.PID]; ok {
			stop()
			delete(w.stop, e.PID)
		}
	}
}

// close ends all looking.
func (w *elsewhere) close() {
	w.end()
	w.looking.Wait()
}

// look says once where a worker listens.
func (w *elsewhere) look(ctx context.Context, e supervisor.Event) {
	ticker := time.NewTicker(elsewhereInterval)
	defer ticker.Stop()
	var before []netip.AddrPort
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if known(e.Link).isServed() {
			continue
		}
		now := slices.DeleteFunc(w.listens(e.PID), w.ours)
		both := slices.DeleteFunc(slices.Clone(now), func(at netip.AddrPort) bool { return !slices.Contains(before, at) })
		if before = now; len(both) > 0 && ctx.Err() == nil {
			w.found(e, both)
			return
		}
	}
}

// listensOn tells whether a socket that is bound to an address can be the balancer's: one of its own,
// or the one for IPv4 beside one of both families. A worker that listens there has taken no listener of ours,
// or will be ready soon.
func (m *Master) listensOn(at netip.AddrPort) bool {
	return slices.ContainsFunc(m.route.addresses(), func(own netip.AddrPort) bool {
		return own == at || own.Port() == at.Port() && (own.Addr() == netip.IPv6Unspecified() && at.Addr() == netip.IPv4Unspecified() || m.isWholeLoopback(own, at))
	})
}

// isWholeLoopback tells whether a socket that is bound to all addresses can be ours for the loopback interface (sock.Listening).
func (m *Master) isWholeLoopback(own, at netip.AddrPort) bool {
	return m.balancer.Config().Clients.Hash.Slots.IsValid() && own.Addr().IsLoopback() && at.Addr().IsUnspecified() && own.Addr().Is4() == at.Addr().Is4()
}

// warnElsewhere says where a worker listens that is not ready, and what would be right.
func (m *Master) warnElsewhere(e supervisor.Event, at []netip.AddrPort) {
	slices.SortFunc(at, netip.AddrPort.Compare)
	m.few.Warn("worker listens elsewhere", "slot", e.Slot, "pid", e.PID, "generation", e.Generation,
		"worker", addressList(at), "handfast", addressList(m.route.addresses()), "remedy", m.remedyElsewhere(at[0]))
}

func (m *Master) remedyElsewhere(at netip.AddrPort) string {
	remedy := "say --listen " + listenFlag(at)
	if m.kind.elsewhere != "" {
		remedy += ", and " + m.kind.elsewhere
	}
	if own := m.route.addresses(); len(own) > 0 {
		remedy += fmt.Sprintf("; or have it listen on port %d", own[0].Port())
	}
	return remedy
}

// listenFlag is the value of --listen for what a worker listens on.
func listenFlag(at netip.AddrPort) string {
	if at.Addr() == netip.IPv6Unspecified() { // as a rule of both families
		return fmt.Sprintf(":%d", at.Port())
	}
	return at.String()
}

func addressList(all []netip.AddrPort) string {
	var texts []string
	for _, at := range all {
		texts = append(texts, listenFlag(at))
	}
	return strings.Join(texts, " ")
}
