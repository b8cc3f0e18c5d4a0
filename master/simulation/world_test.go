package simulation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// world is all that one seed makes: a master, or several one after the other, workers and clients.
type world struct {
	seed  uint64
	cfg   supervisor.Config // without what is a master's own
	began time.Time
	m     *master

	link linkKind

	mu          sync.Mutex
	kernel      kernel
	workers     []*worker // all that there were
	made        map[int]int
	alive       int
	mostAlive   int         // at a time, with those that are being started
	fills       map[int]int // of each slot: how often it was
	goroutines  int         // that there were before
	calm        bool        // new workers are good ones
	stopping    bool
	connections map[uint16]*connection // by port
	slotsSeen   map[netip.Addr]map[int]int
	early       []*worker       // told to finish before the one after them has lasted
	calls       map[string]bool // that have not returned
	failure     string          // the first; empty: there is none
}

// linkKind is how workers get their connections.
type linkKind int

const (
	mailbox linkKind = iota // from the master, which routes
	accepts                 // the kernel routes: from their own listeners, or else from the master, and a word tells them to finish
	listens                 // from their own listeners alone, and a signal tells them to finish
)

func (l linkKind) String() string { return [...]string{"mailbox", "accepts", "listens"}[l] }

// master is one process: a supervisor, and a balancer whose table it fills.
type master struct {
	w             *world
	s             *supervisor.Supervisor
	b             *balancer.Balancer
	route         *kernelroute.Route // nil: the master routes
	stopAccepting context.CancelFunc
	served        chan struct{} // closed when the route serves no more
	table         []*worker     // as the supervisor has told it; nil: empty
	before        []*worker     // at the beginning of the instant of the last change
	sizes         []int         // of the table in the instant of the last change, and before
	changed       time.Time
	over          chan struct{} // closed when another master has taken over
	isOver        bool
	kill          context.CancelFunc
	ended         chan struct{} // closed when Run has returned
}

// waiting is who has a connection that the balancer has.
const waiting = "waiting"

// connection is one that a client has opened.
type connection struct {
	port        uint16
	client      netip.Addr
	fd          int // whoever owns it
	inode       uint64
	serveTime   time.Duration
	slot, slots int       // by the kernel's route
	cameToEmpty bool      // slot
	fills       int       // of it, when it came
	owner       string    // for people
	since       time.Time // it waits, if it does
	ended       string    // how; empty: it has not
}

func (w *world) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// locked does what a master does, unless another one has taken over.
func (m *master) locked(f func()) {
	m.w.locked(func() {
		if !m.isOver {
			f()
		}
	})
}

// fail notes what is wrong. The first counts.
func (w *world) fail(format string, args ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf("after %v: ", time.Since(w.began)) + fmt.Sprintf(format, args...)
	}
}

func newWorld(seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 1))
	cfg := supervisor.DefaultConfig()
	cfg.Command, cfg.Workers = []string{"server"}, 1+r.IntN(4)
	cfg.ReadyTimeout, cfg.DrainTimeout, cfg.StopTimeout = 10*time.Second, 30*time.Second, 20*time.Second
	odds := func(n int) bool { return r.IntN(n) == 0 }
	if odds(2) {
		cfg.Probation = 0
	}
	if odds(2) {
		cfg.Watchdog, cfg.ReplaceHung = 8*time.Second, odds(2)
	}
	if odds(3) {
		cfg.LingerUntil = func(_ supervisor.Link, replaced time.Time) time.Time { return replaced.Add(10 * time.Second) }
	}
	if odds(3) {
		cfg.MaxDraining = 1
	}
	if odds(3) {
		cfg.MaxProcesses = 8
	}
	if odds(3) {
		cfg.MaxMemory = 1
	}
	if odds(3) {
		cfg.Health.Interval, cfg.Health.Timeout, cfg.Health.Failures, cfg.Health.Replace = 3*time.Second, time.Second, 2, odds(2)
	}
	if odds(3) {
		cfg.DrainSpread = 10 * time.Second
	}
	link := []linkKind{mailbox, mailbox, mailbox, mailbox, accepts, listens}[rand.New(rand.NewPCG(seed, 3)).IntN(6)]
	return &world{
		link: link, seed: seed, cfg: cfg, began: time.Now(), goroutines: runtime.NumGoroutine(), made: make(map[int]int), fills: make(map[int]int), connections: make(map[uint16]*connection),
		slotsSeen: make(map[netip.Addr]map[int]int), calls: make(map[string]bool),
	}
}

// startMaster starts one with what the one before has left; nil: it is the first.
func (w *world) startMaster(left *reexec.Bundle, slots int, parked []balancer.SavedParked, route *kernelroute.Saved) {
	m := &master{w: w, over: make(chan struct{}), ended: make(chan struct{}), served: make(chan struct{})}
	cfg := w.cfg
	cfg.NewLink, cfg.Start, cfg.Adopt, cfg.RestoreLink, cfg.Slots, cfg.Resume = m.newLink, m.start, m.adopt, m.restoreLink, m, left
	cfg.Memory, cfg.Health.Check = m.memory, m.checkHealth
	placing := balancer.DefaultConfig()
	placing.MaxParked = 20
	placing.OnOutcome = m.outcome
	var err error
	if m.b, err = balancer.New(placing, balancer.NewTable(slots)); err == nil {
		if w.link != mailbox {
			m.makeRoute(route, slots)
			cfg.OnEventInLoop = m.route.HandleEvent
		}
		m.s, err = supervisor.New(cfg)
	}
	if err != nil {
		panic(err)
	}
	w.m = m
	ctx, cancel := context.WithCancel(context.Background())
	m.kill = cancel
	m.table = make([]*worker, slots)
	m.b.ReadmitParked(parked)
	go m.run(ctx)
	if m.route != nil {
		accepting, stop := context.WithCancel(ctx)
		m.stopAccepting = stop
		go m.serve(accepting, ctx)
	}
}

// stop ends a master in peace.
func (m *master) stop() {
	if m.route != nil {
		m.stopAccepting()
		<-m.served
	}
	m.s.Stop()
}

func (m *master) run(ctx context.Context) {
	defer close(m.ended)
	defer func() {
		if why := recover(); why != nil {
			m.w.locked(func() { m.w.fail("the supervisor panics: %v\n%s", why, debug.Stack()) })
		}
	}()
	m.s.Run(ctx)
}

// upgrade replaces the master by another one, as far as that is possible now.
func (w *world) upgrade() {
	m := w.m
	var left *reexec.Bundle
	var parked []balancer.SavedParked
	var route *kernelroute.Saved
	slots := 0
	m.s.Quiesce(true, func() error {
		b := reexec.NewBundle("before")
		if m.route != nil {
			route = m.route.Save(b)
		}
		if err := m.s.Save(b); err != nil {
			return err
		}
		w.locked(func() {
			m.isOver, left, slots = true, b, len(m.table)
			close(m.over)
			for _, saved := range m.b.SaveParked(b) {
				c := w.connections[saved.Client.Port()]
				if !saved.Refused {
					fd, err := unix.FcntlInt(uintptr(saved.FD), unix.F_DUPFD_CLOEXEC, 0) // as what goes on over exec
					if err != nil {
						panic(err)
					}
					saved.FD, c.fd = fd, fd
					parked = append(parked, saved)
				}
			}
		})
		return fmt.Errorf("another program runs")
	})
	if left == nil {
		return
	}
	m.end()
	w.locked(func() { // patience begins anew: of what is parked, and of what the next master finds in queues
		for _, saved := range parked {
			w.connections[saved.Client.Port()].waits()
		}
		for _, l := range w.kernel.listeners {
			for _, c := range l.queue {
				c.since = time.Now()
			}
		}
	})
	w.startMaster(left, slots, parked, route)
}

// end ends what is left of a master. What it would do to workers does not reach them if another has taken over.
func (m *master) end() {
	m.kill()
	<-m.ended
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if m.route != nil {
		<-m.served
		m.route.Close(now)
	}
	m.b.Shutdown(now)
}

// arrive opens connections of a client.
func (w *world) arrive(client, n int) {
	var all []fdpass.Handoff
	w.locked(func() {
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				panic(err)
			}
			port := uint16(1000 + len(w.connections))
			c := &connection{port: port, client: netip.AddrFrom4([4]byte{192, 0, 2, byte(client)}), fd: fd, inode: inode(fd),
				serveTime: time.Duration(1+(int(port)*7919)%20_000) * time.Millisecond}
			w.connections[port] = c
			if w.link != mailbox {
				w.kernel.comes(w, c)
				continue
			}
			c.waits()
			all = append(all, c.handoff())
		}
	})
	w.m.readmit(all)
}

func inode(fd int) uint64 {
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil {
		return 0
	}
	return stat.Ino
}

func (c *connection) waits() { c.owner, c.since = waiting, time.Now() }

func (c *connection) handoff() fdpass.Handoff {
	return fdpass.Handoff{FD: c.fd, Client: netip.AddrPortFrom(c.client, c.port)}
}

func (m *master) readmit(all []fdpass.Handoff) {
	if len(all) > 0 {
		reexec.Lock.RLock()
		defer reexec.Lock.RUnlock()
		m.b.Readmit(all)
	}
}

// finish ends a connection that a worker has.
func (w *world) finish(c *connection, how string) {
	if c.ended != "" {
		w.fail("connection %d, %s, is %s", c.port, c.ended, how)
	}
	if inode(c.fd) != c.inode {
		w.fail("connection %d has lost its descriptor when %s", c.port, how)
	}
	unix.Close(c.fd)
	c.ended, c.owner = how, "nobody"
}

// outcome is told that a connection is refused. The balancer closes it.
func (m *master) outcome(o balancer.Outcome) {
	m.locked(func() {
		c := m.w.connections[o.Peer.Port()]
		if o.Worker != nil {
			return
		}
		if c.ended != "" || c.owner != waiting {
			m.w.fail("connection %d, which is %s %s, is refused: %v", c.port, c.owner, c.ended, o.Err)
		}
		c.ended, c.owner = "refused: "+o.Err.Error(), "nobody"
	})
}

// Resize, Fill and Empty implement supervisor.Slots.

func (m *master) Resize(n int) {
	m.locked(func() {
		m.changes()
		for slot, k := range m.table {
			if slot < n {
				continue
			}
			m.w.fills[slot]++ // a new one may come in its place
			if k != nil {
				k.removed = true
			}
		}
		for len(m.table) < n {
			m.table = append(m.table, nil)
		}
		m.table = m.table[:n]
		m.sizes = append(m.sizes, n)
	})
	if m.route != nil {
		m.route.Resize(n)
		return
	}
	m.b.Table().Resize(n)
}

func (m *master) Fill(slot int, link supervisor.Link) {
	h := link.(handle)
	m.locked(func() {
		m.changes()
		old := m.table[slot]
		m.table[slot] = h.worker
		switch {
		case !h.ready && !(h.begun && m.w.link == listens):
			m.w.fail("slot %d is filled with %s, which is not ready", slot, h.name)
		case h.seat.Slot != slot:
			m.w.fail("slot %d is filled with %s", slot, h.name)
		case h.told && !h.hasLeft:
			m.w.fail("slot %d is filled with %s, which was told to finish", slot, h.name)
		}
		if old != nil && old != h.worker {
			old.replacedAt = time.Now()
		}
		m.w.fills[slot]++
		h.filledAt, h.replacedAt = time.Now(), time.Time{}
	})
	if m.route != nil {
		m.route.Fill(slot, h)
		return
	}
	m.b.Table().Fill(slot, h)
}

func (m *master) Empty(slot int) {
	m.locked(func() { m.changes(); m.table[slot] = nil })
	if m.route != nil {
		m.route.Empty(slot)
		return
	}
	m.b.Table().Empty(slot)
}

// changes notes that the table is about to: who has looked at it in this instant may have seen it as it was before.
func (m *master) changes() {
	if now := time.Now(); m.changed != now {
		m.changed, m.before, m.sizes = now, append([]*worker(nil), m.table...), []int{len(m.table)}
	} else {
		m.before = append(m.before, m.table...)
	}
}

// call asks the supervisor for something that may take long.
func (w *world) call(name string, f func(*supervisor.Supervisor) error) {
	s := w.m.s
	w.locked(func() {
		for w.calls[name] {
			name += "'"
		}
		w.calls[name] = true
	})
	go func() {
		f(s)
		w.locked(func() { delete(w.calls, name) })
	}()
}

// step lets time go by, and then all that happens by itself.
func (w *world) step(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// String is the table of slots, on one line.
func (m *master) String() string {
	snapshot, _ := m.s.Snapshot()
	var b strings.Builder
	show := func(what string, s *supervisor.WorkerStatus) {
		if s == nil {
			return
		}
		name := "?"
		if s.PID >= 100 {
			name = m.w.workers[s.PID-100].name
		}
		fmt.Fprintf(&b, " %s%s/%d %v", what, name, s.Generation, s.State)
	}
	for i, sl := range snapshot.Slots {
		fmt.Fprintf(&b, "| %d:", i)
		show("", sl.Worker)
		show("next ", sl.Next)
		show("before ", sl.Standby)
		if !sl.NextStart.IsZero() {
			fmt.Fprintf(&b, " start in %v", time.Until(sl.NextStart))
		}
		b.WriteString(" ")
	}
	b.WriteString("| out:")
	for _, s := range snapshot.Draining {
		show("", s)
	}
	fmt.Fprintf(&b, " | %d wait", m.b.Stats().Parked)
	m.w.locked(func() {
		for i, l := range m.w.kernel.listeners {
			fmt.Fprintf(&b, " | listener %d: %d wait", i, len(l.queue))
			for _, k := range m.w.workers {
				if k.listener == l && k.started && !k.isDead {
					fmt.Fprintf(&b, ", %s", k.name)
				}
			}
		}
	})
	return b.String()
}
