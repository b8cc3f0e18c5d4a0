package master

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/supervisor"
)

// severalLooks is when a worker that is ready is looked at, counted from the look before. A process
// that is busy in one look sleeps in another.
var severalLooks = []time.Duration{time.Second, time.Second, 2 * time.Second}

// maxNamed is how many processes are named in one line of the log.
const maxNamed = 8

// several notices that a slot is served by several processes: a client's connections are then spread
// over them, and what one keeps in memory is not sticky. It looks at one worker of each generation,
// and says it once. A goroutine runs for each look; all end with close.
type several struct {
	ctx     context.Context
	end     context.CancelFunc
	looking sync.WaitGroup
	looked  int // generation; of handleEvent
	told    atomic.Bool
	sharing func(pid int) []int
	found   func(e supervisor.Event, pids []int)
}

func newSeveral(sharing func(pid int) []int, found func(supervisor.Event, []int)) *several {
	s := &several{sharing: sharing, found: found}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// handleEvent is told what happens to workers.
func (s *several) handleEvent(e supervisor.Event) {
	if e.Kind == supervisor.WorkerReady && e.Generation != s.looked && !s.told.Load() {
		s.looked = e.Generation
		s.looking.Go(func() { s.look(e) })
	}
}

func (s *several) close() {
	s.end()
	s.looking.Wait()
}

// look says what several looks have seen together, of processes that are there at the end.
func (s *several) look(e supervisor.Event) {
	var seen []int
	for _, wait := range severalLooks {
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return
		}
		seen = append(seen, s.sharing(e.PID)...)
	}
	slices.Sort(seen)
	seen = slices.DeleteFunc(slices.Compact(seen), func(pid int) bool { return unix.Kill(pid, 0) == unix.ESRCH })
	if len(seen) > 1 && !s.told.Swap(true) {
		s.found(e, seen)
	}
}

// sharing returns the processes of a worker that serve clients of its slot together: that wait for
// them, or that get them from another one as workers of a cluster of Node's.
func (m *Master) sharing(pid int) []int {
	wanted := m.listensOn
	if m.kind.anywhere {
		wanted = func(netip.AddrPort) bool { return true }
	}
	pids := listening.Sharing(pid, wanted)
	if len(pids) == 0 && !m.kind.clustered {
		pids = listening.Having(pid, "NODE_UNIQUE_ID")
	}
	return pids
}

// warnSeveral says that a slot is served by several processes. Of servers that are known for it and
// keep little it is no warning.
func (m *Master) warnSeveral(e supervisor.Event, pids []int) {
	const message = "slot is served by several processes"
	args := []any{"slot", e.Slot, "generation", e.Generation, "processes", len(pids), "pids", fmt.Sprint(pids[:min(len(pids), maxNamed)])}
	program := programs.Resolve(m.command)
	server, _ := program.Server()
	switch {
	case server.Forks:
		m.few.Info(message, append(args, "note", "what they keep in memory about a client is not sticky")...)
	case server.OneProcess != "":
		m.few.Warn(message, append(args, "note", "what they keep in memory about a client is not sticky", "remedy", fmt.Sprintf("%s %s, and handfast --workers N for more processes", server.Name, server.OneProcess))...)
	default:
		m.few.Warn(message, append(args, "note", "what they keep in memory about a client is not sticky", "remedy", "have the server run one process, and handfast --workers N for more")...)
	}
}
