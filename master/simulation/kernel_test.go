package simulation

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/sockdiag"
	"github.com/handfast/handfast/master/supervisor"
)

// kernel has the slots' listeners, and puts clients' connections into their queues. It outlives masters.
type kernel struct {
	listeners []*listener
	at        []int // by slot: the listener that its clients come to
	noFiles   bool  // no other listener can be opened
	shares    bool  // that was so once, and slots may share some since
	shut      bool  // no handshake begins any more
}

// listener is one, and what waits there.
type listener struct {
	file    *os.File
	queue   []*connection
	came    chan struct{} // closed and replaced when a connection comes
	blocked time.Time     // until then somebody was there who does not accept
}

var listensAt = netip.MustParseAddrPort("10.0.0.99:80")

// comes puts a connection where its client's slot is.
func (n *kernel) comes(w *world, c *connection) {
	c.slots = len(n.at)
	c.slot = hash.DefaultConfig().Key(c.client).Slot(c.slots)
	l := n.listeners[n.at[c.slot]]
	c.owner, c.since = "in a queue", time.Now()
	c.cameToEmpty, c.fills = w.m.at(c.slot) == nil, w.fills[c.slot]
	l.queue = append(l.queue, c)
	close(l.came)
	l.came = make(chan struct{})
	time.AfterFunc(time.Millisecond, func() { w.locked(func() { w.accept(l) }) })
}

// accept has those workers accept that have a listener open.
func (w *world) accept(l *listener) {
	for _, k := range w.workers {
		if k.listener == l {
			k.accept()
		}
	}
}

// of returns a file's listener.
func (n *kernel) of(file *os.File) *listener {
	return n.listeners[slices.IndexFunc(n.listeners, func(l *listener) bool { return l.file == file })]
}

// group is all listeners, as one master sees them. When another one has taken over, nothing that is done to it has an effect.
type group struct{ m *master }

var _ kernelroute.Group = group{}

func (g group) Addr() *net.TCPAddr  { return net.TCPAddrFromAddrPort(listensAt) }
func (g group) Bound() *net.TCPAddr { return g.Addr() }
func (g group) Absent() *os.File    { return nil }
func (g group) Came() []uint64      { return nil }

func (g group) Members() (n int) {
	g.m.w.locked(func() { n = len(g.m.w.kernel.listeners) })
	return n
}

func (g group) Grow(members int) (err error) {
	err = errOver
	g.m.locked(func() {
		err = nil
		for n := &g.m.w.kernel; len(n.listeners) < members && err == nil; {
			if n.noFiles {
				n.shares, err = true, syscall.EMFILE
				return
			}
			var file *os.File
			if file, err = os.Open(os.DevNull); err == nil { // it has an identity, and can be closed
				n.listeners = append(n.listeners, &listener{file: file, came: make(chan struct{})})
			}
		}
	})
	return err
}

func (g group) Steer(members []int) error {
	g.m.locked(func() { g.m.w.kernel.at = slices.Clone(members) })
	return nil
}

func (g group) Listener(i int) (file *os.File) {
	g.m.w.locked(func() { file = g.m.w.kernel.listeners[i].file })
	return file
}

func (g group) Queue(i int) (waiting, limit int, err error) {
	g.m.w.locked(func() { waiting = len(g.m.w.kernel.listeners[i].queue) })
	return waiting, 4096, nil
}

func (g group) Clean(i int, blocking bool) error {
	w := g.m.w
	g.m.locked(func() {
		for _, k := range w.workers {
			if k.listener == w.kernel.listeners[i] && k.started && !k.isDead {
				w.fail("listener %d is made as new while %s has it", i, k.name)
			}
		}
	})
	return nil
}

func (g group) Repair() (found reuseport.Repaired, err error) { return found, nil }
func (g group) OnlyIPv4() (kernelroute.Group, error)          { return nil, nil }

func (g group) StopHandshakes() error {
	g.m.locked(func() { g.m.w.kernel.shut = true })
	return nil
}

func (g group) Save(*reexec.Bundle) reuseport.Saved {
	return reuseport.Saved{Members: make([]int, g.Members())}
}

func (g group) SaveCounting(*reexec.Bundle) *reuseport.SavedProgram { return nil }

func (g group) Close() error {
	g.m.locked(func() {
		for i, l := range g.m.w.kernel.listeners {
			if len(l.queue) > 0 {
				g.m.w.fail("listener %d is closed, and %d connections wait there", i, len(l.queue))
			}
			l.file.Close()
		}
	})
	return nil
}

// acceptor accepts from listeners, as a balancer does.
type acceptor struct{ m *master }

// AcceptShared hands off what it accepts.
func (a acceptor) AcceptShared(ctx context.Context, file *os.File) error {
	for {
		came := a.m.acceptAll(file)
		select {
		case <-came:
		case <-ctx.Done():
			return nil
		}
	}
}

// acceptAll returns what is closed when more has come.
func (m *master) acceptAll(file *os.File) (came chan struct{}) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	var all []fdpass.Handoff
	m.w.locked(func() { came = m.w.kernel.of(file).came })
	m.locked(func() {
		l := m.w.kernel.of(file)
		if m.w.link == listens && len(l.queue) > 0 {
			m.w.fail("the master accepts what it cannot hand off")
		}
		for _, c := range l.queue {
			c.waits()
			all = append(all, c.handoff())
		}
		l.queue = nil
	})
	if len(all) > 0 {
		m.b.Readmit(all)
	}
	return came
}

func (a acceptor) RefuseOverdue(tick time.Duration, overdue func(waiting int) int) func(context.Context, *os.File) error {
	return func(ctx context.Context, file *os.File) error {
		look := time.NewTicker(tick)
		defer look.Stop()
		for {
			waiting := 0
			a.m.locked(func() { waiting = len(a.m.w.kernel.of(file).queue) })
			if waiting > 0 {
				a.m.refuse(file, overdue(waiting))
			}
			select {
			case <-look.C:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// refuse refuses the first n that wait.
func (m *master) refuse(file *os.File, n int) {
	m.locked(func() {
		l := m.w.kernel.of(file)
		n = min(n, len(l.queue))
		for _, c := range l.queue[:n] {
			m.checkRefusal(c, l)
			m.w.finish(c, "refused by the master")
		}
		l.queue = l.queue[n:]
	})
}

// patience is how long a connection may wait for its slot's worker.
func (m *master) patience() time.Duration {
	cfg := m.b.Config()
	return cfg.Patience()
}

// checkRefusal is asked when the master refuses what waits at a listener.
func (m *master) checkRefusal(c *connection, l *listener) {
	w, k := m.w, m.at(c.slot)
	if w.stopping || c.slot >= len(m.table) || m.changed.Equal(time.Now()) { // then the master may have seen the table as it was before
		return
	}
	switch {
	case k == nil && w.kernel.listeners[w.kernel.at[c.slot]] == l && time.Since(c.since) < m.patience():
		w.fail("connection %d is refused after %v, and its slot's next worker may come in time", c.port, time.Since(c.since))
	case k == nil || !k.takes() || time.Since(k.begunAt) < time.Second:
	case k.listener == l:
		w.fail("connection %d is refused, and %s accepts", c.port, k.name)
	case c.cameToEmpty && w.fills[c.slot] == c.fills+1 && !w.kernel.shares:
		w.fail("connection %d is refused, and %s has come in time, and has another listener", c.port, k.name)
	}
}

func (a acceptor) TakeBacklog(file *os.File) error {
	a.m.refuse(file, 1<<30)
	return nil
}

func (a acceptor) NoteOpen([]netip.Addr)    {}
func (a acceptor) Shutdown(context.Context) {}

// around is what a Route asks of the machine.
func (m *master) around() kernelroute.Surroundings {
	return kernelroute.Surroundings{
		Listen: func(context.Context, string, hash.Config, []int, int) (kernelroute.Group, error) {
			return nil, errors.New("there is one address")
		},
		FindHolder: func(pid int, _ []*os.File) (kernelroute.Holder, error) {
			return handle{worker: m.w.byPID(pid), m: m}, nil
		},
		Owners: func(reuseport.Stranger) []reuseport.Owner { return nil },
		List:   m.sockets,
	}
}

// Holds implements kernelroute.Holder.
func (h handle) Holds() (does bool) {
	h.w.locked(func() { does = h.started && !h.isDead && !h.closedListener })
	return does
}

// sockets lists the connections that there are.
func (m *master) sockets(uint16, ...sockdiag.State) (all []sockdiag.Socket, err error) {
	m.w.locked(func() {
		list := func(c *connection, inode uint64) {
			all = append(all, sockdiag.Socket{State: sockdiag.Established, Family: unix.AF_INET, Inode: inode, Cookie: uint64(c.port),
				Local: listensAt, Remote: netip.AddrPortFrom(c.client, c.port)})
		}
		for _, l := range m.w.kernel.listeners {
			for _, c := range l.queue {
				list(c, 0)
			}
		}
		for _, k := range m.w.workers {
			for c := range k.accepted {
				list(c, c.inode)
			}
		}
	})
	return all, nil
}

// makeRoute makes the kernel's route, for slots that are there or as the master before has left it.
func (m *master) makeRoute(saved *kernelroute.Saved, slots int) {
	g := group{m}
	if saved == nil {
		g.Grow(slots)
	}
	cfg := kernelroute.Config{
		Balancer: m.b, HandsOff: m.w.link != listens, Blocking: m.w.link == listens,
		Finishing: func(link supervisor.Link) { m.s.Finishing(link) },
	}
	m.route = kernelroute.NewAmid(cfg, []kernelroute.Group{g}, acceptor{m}, acceptor{m}, m.around())
	if saved != nil {
		if err := m.route.Restore(saved, nil); err != nil {
			panic(err)
		}
		return
	}
	m.route.Resize(slots)
}

// serve runs the route.
func (m *master) serve(accepting, killed context.Context) {
	defer close(m.served)
	m.route.Serve(accepting, killed, m.w.cfg.StopTimeout)
}

// Worker and Accepts implement kernelroute.Link.
func (h handle) Worker() balancer.Worker {
	if h.w.link == listens {
		return nil
	}
	return h
}

func (h handle) Accepts(netip.AddrPort) bool { return h.like.accepts }

// Begun and Heeds are what the supervisor asks of links by which workers accept.
func (h handle) Begun() (has bool) {
	h.w.locked(func() { has = h.listener != nil && (h.ready || h.begun && h.w.link == listens) })
	return has
}

func (h handle) Heeds() bool { return h.w.link == accepts }

// takes tells whether the worker accepts from its listener.
func (k *worker) takes() bool {
	return k.listener != nil && k.begun && k.like.accepts && !k.isDead && !k.hangs && !k.closedListener
}

// begin is when the worker begins to accept.
func (k *worker) begin() {
	if k.isDead || k.begun {
		return
	}
	k.begun, k.begunAt = true, time.Now()
	k.accept()
}

func (k *worker) accept() {
	if !k.takes() {
		return
	}
	for _, c := range k.listener.queue {
		if k.seat.Slot != c.slot && !k.w.kernel.shares {
			k.w.fail("connection %d of slot %d is accepted by %s", c.port, c.slot, k.name)
		}
		k.w.checkSticky(c, c.slot, []int{c.slots})
		k.has(c)
	}
	k.listener.queue = nil
}

// closeListener has the worker accept no more.
func (k *worker) closeListener() {
	if k.listener != nil && !k.closedListener {
		k.closedListener, k.closedAt = true, time.Now()
		k.listener.blocked = time.Now()
	}
}

// checkKernel: clients come to the listener of the worker in their slot, each worker has one of its own, and nobody waits where nobody
// accepts.
func (w *world) checkKernel() {
	n, m, now := &w.kernel, w.m, time.Now()
	if w.stopping {
		return
	}
	if len(n.at) != len(m.table) {
		w.fail("%d slots have workers, and the kernel knows %d", len(m.table), len(n.at))
		return
	}
	for slot, k := range m.table {
		if k != nil && n.listeners[n.at[slot]] != k.listener {
			w.fail("clients of slot %d do not come to the listener of %s", slot, k.name)
		}
	}
	if most := w.mostAlive + 2*maxSlots; len(n.listeners) > most {
		w.fail("%d listeners are open, and there were at most %d workers at a time", len(n.listeners), w.mostAlive)
	}
	for i, l := range n.listeners {
		var with []string
		for _, k := range w.workers {
			if k.listener != l || k.isDead || !k.started {
				continue
			}
			if k.hangs || k.closedListener && now.Sub(k.closedAt) < time.Second {
				l.blocked = now
			}
			if !k.hasLeft && !k.told && !k.signalled {
				with = append(with, k.name)
			}
		}
		if len(with) > 1 && !n.shares {
			w.fail("listener %d has several workers: %v", i, with)
		}
		for _, c := range l.queue {
			since := c.since
			if l.blocked.After(since) {
				since = l.blocked
			}
			if now.Sub(since) > m.patience()+queueSlack {
				w.fail("connection %d of slot %d waits at listener %d for %v", c.port, c.slot, i, now.Sub(since))
			}
		}
	}
}

// maxSlots is how many there are at most.
const maxSlots = 4

// queueSlack is how much longer than it may a connection waits that nobody accepts: until it is seen, and seen that nobody will.
const queueSlack = 3 * time.Second
