package simulation

import (
	"runtime"
	"slices"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// checkDelivery is asked when a connection is delivered.
func (w *world) checkDelivery(k *worker, c *connection, fd int) {
	m := w.m
	switch {
	case c.ended != "":
		w.fail("connection %d, %s, is delivered to %s", c.port, c.ended, k.name)
	case c.owner != waiting:
		w.fail("connection %d is delivered to %s, and is %s", c.port, k.name, c.owner)
	case inode(fd) != c.inode:
		w.fail("connection %d is delivered to %s with another descriptor", c.port, k.name)
	}
	inTable, sizes := slices.Contains(m.table, k), []int{len(m.table)}
	if m.changed.Equal(time.Now()) {
		inTable, sizes = inTable || slices.Contains(m.before, k), append(sizes, m.sizes...)
	}
	if !inTable {
		w.fail("connection %d is delivered to %s, which is in no slot", c.port, k.name)
	}
	w.checkSticky(c, k.seat.Slot, sizes)
}

// checkSticky: among as many slots as before a client has the slot that it had; among more it has that or a new one.
func (w *world) checkSticky(c *connection, slot int, sizes []int) {
	seen := w.slotsSeen[c.client]
	if seen == nil {
		seen = make(map[int]int)
		w.slotsSeen[c.client] = seen
	}
	fits := func(n int) bool {
		for before, was := range seen {
			fewer, more, inFewer, inMore := n, before, slot, was
			if before <= n {
				fewer, more, inFewer, inMore = before, n, was, slot
			}
			if inMore != inFewer && (inMore < fewer || fewer == more) {
				return false
			}
		}
		return slot < n
	}
	if !slices.ContainsFunc(sizes, fits) {
		w.fail("client %v goes to slot %d of %v; it had, by number of slots: %v", c.client, slot, sizes, seen)
	}
	if slices.Compact(slices.Sorted(slices.Values(sizes)))[0] == slices.Max(sizes) {
		seen[sizes[0]] = slot
	}
}

// noteDrain is asked when a worker is told to finish, and checkDrains when the instant is over: a worker that serves, and with which nothing
// is wrong, is told so only since another one has its slot and has lasted for its probation.
func (w *world) noteDrain(k *worker) {
	if w.stopping || !k.ready || k.isDead || k.hasLeft || k.hung || k.removed || k.filledAt.IsZero() {
		return
	}
	if k.replacedAt.IsZero() {
		w.fail("%s is told to finish, and nobody has taken its slot over", k.name)
	}
	if time.Since(k.replacedAt) < w.cfg.Probation {
		w.early = append(w.early, k)
	}
}

func (w *world) checkDrains() {
	for _, k := range w.early {
		successor := w.m.at(k.seat.Slot)
		switch {
		case successor == nil: // it has gone
		case successor.seat.Generation < k.seat.Generation: // a reload has failed
		case !successor.filledAt.Equal(k.replacedAt): // its successor was overtaken, or has gone
		default:
			w.fail("%s was told to finish while its successor %s was on probation", k.name, successor.name)
		}
	}
	w.early = nil
}

// slack is how much later than it should something may end: the moments that a worker that left has, and the like.
const slack = time.Second

// check looks at all that must be so at any time.
func (w *world) check() {
	snapshot, _ := w.m.s.Snapshot()
	w.locked(func() {
		w.checkTable(snapshot)
		w.checkDrains()
		w.checkWorkers(snapshot)
		w.checkConnections()
		if w.link != mailbox {
			w.checkKernel()
		}
	})
}

// checkTable: the balancer's table is what the supervisor shows.
func (w *world) checkTable(snapshot *supervisor.Snapshot) {
	m := w.m
	if snapshot.Stopping {
		return
	}
	if m.b.Table().Len() != len(m.table) || snapshot.InUse != len(m.table) {
		w.fail("%d slots are in use, the table has %d", snapshot.InUse, m.b.Table().Len())
		return
	}
	for i, k := range m.table {
		shown := snapshot.Slots[i].Worker
		if (shown == nil) != (k == nil) || k != nil && shown.PID != k.pid {
			w.fail("slot %d of the table is not that of the supervisor", i)
		}
	}
}

// checkWorkers: each process is known once, in one slot there is one that serves, and each state ends in time.
func (w *world) checkWorkers(snapshot *supervisor.Snapshot) {
	known := make(map[int]int)
	now := time.Now()
	see := func(s *supervisor.WorkerStatus, states ...supervisor.State) {
		if s == nil {
			return
		}
		if s.PID > 0 {
			known[s.PID]++
		}
		if !slices.Contains(states, s.State) {
			w.fail("a worker of slot %d, pid %d, is %v", s.Slot, s.PID, s.State)
		}
		if most := w.longest(s.State); now.Sub(s.Since) > most+slack {
			w.fail("a worker of slot %d, pid %d, is %v for longer than %v", s.Slot, s.PID, s.State, most)
		}
	}
	for _, sl := range snapshot.Slots {
		see(sl.Worker, supervisor.Serving)
		see(sl.Next, supervisor.Starting)
		see(sl.Standby, supervisor.Standby)
		if sl.Worker != nil && sl.Next != nil && sl.Next.Generation != sl.Worker.Generation && !reloads(snapshot) {
			w.fail("slot %d is about to get generation %d, and no reload is in progress", sl.Next.Slot, sl.Next.Generation)
		}
		if r := snapshot.Reload; r != nil && r.Err != nil && sl.Worker != nil && sl.Worker.Generation == r.Generation && sl.Standby != nil && sl.Standby.Generation != r.Generation {
			w.fail("slot %d keeps generation %d, which is on probation, and its reload has failed", sl.Standby.Slot, r.Generation)
		}
		if sl.Worker == nil && sl.Next == nil && sl.NextStart.IsZero() && !snapshot.Stopping {
			w.fail("slot of generation %d has no worker, and will get none", snapshot.Generation)
		}
	}
	leaving := make(map[int]int) // by slot
	for _, s := range snapshot.Draining {
		see(s, supervisor.Draining, supervisor.Lingering, supervisor.Stopping, supervisor.Killed)
		if s.State == supervisor.Draining || s.State == supervisor.Lingering {
			leaving[s.Slot]++
		}
		if most := w.cfg.MaxDraining; most > 0 && leaving[s.Slot] > most && !snapshot.Stopping {
			w.fail("of slot %d %d workers drain or linger, and %d may", s.Slot, leaving[s.Slot], most)
		}
	}
	for _, k := range w.workers {
		switch n := known[k.pid]; {
		case n > 1:
			w.fail("%s is there %d times", k.name, n)
		case n == 0 && k.started && !k.isDead && k.like.killable:
			w.fail("%s lives, and the supervisor does not know it", k.name)
		}
	}
}

func reloads(snapshot *supervisor.Snapshot) bool {
	return snapshot.Reload != nil && snapshot.Reload.Ended.IsZero()
}

func (w *world) longest(s supervisor.State) time.Duration {
	switch s {
	case supervisor.Starting:
		return w.cfg.ReadyTimeout
	case supervisor.Standby:
		return w.cfg.Probation
	case supervisor.Draining, supervisor.Lingering:
		return w.cfg.DrainTimeout
	case supervisor.Stopping:
		return w.cfg.KillTimeout
	case supervisor.Killed:
		return 10 * time.Second
	default:
		return 1000 * time.Hour
	}
}

// checkConnections: nobody waits for longer than may be, or for a worker that has room.
func (w *world) checkConnections() {
	m, now := w.m, time.Now()
	if n, most := m.b.Stats().Parked, m.b.Config().MaxParked; n > most {
		w.fail("%d connections wait, and %d may", n, most)
	}
	for _, c := range w.connections {
		if c.ended != "" || c.owner != waiting {
			continue
		}
		if waited := now.Sub(c.since); waited > m.b.Patience()+slack {
			w.fail("connection %d waits for %v", c.port, waited)
		}
		slot, known := w.slotsSeen[c.client][len(m.table)]
		k := m.at(slot)
		if !known || k == nil {
			continue
		}
		retry := m.b.Config().RetryDelay + time.Millisecond
		room := k.closed == 0 && len(k.mailbox) < mailboxRoom
		atOnce := k.filledAt.Equal(now) && slices.Min(m.sizes) == slices.Max(m.sizes) // who has waited for another slot until now looks again after the delay
		lately := now.Sub(c.since) <= retry || now.Sub(k.roomSince) <= retry || now.Sub(k.filledAt) <= retry
		if room && (atOnce || !lately) {
			w.fail("connection %d waits, and %s in its slot has room", c.port, k.name)
		}
	}
}

// checkQuiet: nothing goes wrong any more, for a long time. All slots are filled, nobody waits and nothing drains.
func (w *world) checkQuiet() {
	snapshot, _ := w.m.s.Snapshot()
	w.locked(func() {
		for i, sl := range snapshot.Slots {
			if sl.Worker == nil || sl.Next != nil || sl.Standby != nil {
				w.fail("slot %d does not come to rest", i)
			}
		}
		if snapshot.Queued || reloads(snapshot) {
			w.fail("a reload does not end")
		}
		if len(snapshot.Draining) > 0 || snapshot.InUse != len(snapshot.Slots) {
			w.fail("workers do not end, or slots are not filled: %d drain, %d slots of %d", len(snapshot.Draining), snapshot.InUse, len(snapshot.Slots))
		}
		w.checkCalls()
		w.checkNoneOpen()
		if n, most := w.countGoroutines(), 10+3*w.alive+len(w.kernel.listeners); n > most && w.countExactly() > most { // those of the runtime come and go
			w.fail("%d goroutines run, want at most %d", n, most)
		}
	})
}

// noteSignal: a worker that has clients is told to finish before it is ended, unless it hangs or is not ready in time.
func (w *world) noteSignal(k *worker) {
	k.signalled = true
	late := !k.ready && time.Since(k.startedAt) >= w.cfg.ReadyTimeout
	if len(k.accepted) > 0 && !k.told && !k.hung && !late && !w.stopping {
		w.fail("%s has %d clients, and is ended without being told to finish", k.name, len(k.accepted))
	}
}

// countExactly is countGoroutines while nothing runs. The runtime's own count is too high while a thread moves goroutines that have ended from
// one list to another, and on a busy machine such a thread may have to wait for a processor just then.
func (w *world) countExactly() int {
	n, _ := runtime.GoroutineProfile(make([]runtime.StackRecord, 1))
	return n - w.goroutines
}

// countGoroutines returns about how many there are now that were not before.
func (w *world) countGoroutines() (n int) {
	n = runtime.NumGoroutine()
	for range 20 {
		runtime.Gosched()
		n = min(n, runtime.NumGoroutine())
	}
	return n - w.goroutines
}

// checkCalls: all that was asked of the supervisor has been answered.
func (w *world) checkCalls() {
	for call := range w.calls {
		w.fail("%s does not return", call)
	}
}

// checkNoneOpen: every connection has ended.
func (w *world) checkNoneOpen() {
	for _, c := range w.connections {
		if c.ended == "" {
			w.fail("connection %d is never served: it is %s", c.port, c.owner)
		}
	}
}
