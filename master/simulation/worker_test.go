package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// mailboxRoom is how many connections wait in a mailbox at most.
const mailboxRoom = 3

// nature is what a worker is like. It depends on the seed, on its slot and on how many that slot had before alone, so that it
// stays the same when events are left out of a schedule.
type nature struct {
	startTime time.Duration // that its start takes
	startErr  error         // why it does not come up
	readyTime time.Duration // after its start; negative: it is never ready
	lifetime  time.Duration // then it dies; 0: it does not
	drainTime time.Duration // that it takes to finish; negative: it does not
	heedsTerm bool
	killable  bool
	accepts   bool          // by itself, where the kernel routes
	lag       time.Duration // by which it is known to be ready later than it is, where the kernel routes
}

// worker is a process, the worker's end of its mailbox, and what it has.
type worker struct {
	w       *world
	name    string
	seat    supervisor.Seat
	pid     int
	like    nature
	isReady chan struct{}
	left    chan struct{}
	dead    chan struct{}
	exit    supervisor.Exit // when it is dead

	started, ready, hasLeft, hangs, hung, isDead, isIll bool
	memory                                              int64 // that it has

	told                                       bool      // to finish
	listener                                   *listener // where the kernel routes: its own
	begun, closedListener, finishes, signalled bool
	closedAt                                   time.Time
	startedAt                                  time.Time
	begunAt                                    time.Time
	removed                                    bool // with its slot
	mailbox                                    []*connection
	accepted                                   map[*connection]bool
	closed                                     int
	readyAt                                    time.Time

	filledAt   time.Time // when it came into its slot; zero: it never did
	replacedAt time.Time // when another one did; zero: it is there, or was there never
	roomSince  time.Time // its mailbox has room
}

func (w *world) natureOf(seat supervisor.Seat, nth int) nature {
	r := rand.New(rand.NewPCG(w.seed, uint64(seat.Slot)<<32|uint64(nth)))
	ms := func(most int) time.Duration { return time.Duration(r.IntN(most)) * time.Millisecond }
	n := nature{readyTime: 1 + ms(1000), drainTime: ms(20_000), heedsTerm: true, killable: true}
	bad := r.IntN(100)
	slow := ms(15_000)
	n.accepts, n.lag = w.link == listens || r.IntN(6) > 0, ms(3000)
	if w.calm {
		return n
	}
	switch {
	case bad < 4:
		n.readyTime = -1
	case bad < 9:
		n.readyTime, n.lifetime = -1, 1+slow/5
	case bad < 15:
		n.lifetime = 1 + slow
	case bad < 19:
		n.drainTime = -1
	case bad < 22:
		n.drainTime, n.heedsTerm = -1, false
	case bad < 23:
		n.drainTime, n.heedsTerm, n.killable = -1, false, false
	case bad < 26:
		n.startErr = errors.New("no such program")
	case bad < 28:
		n.startErr = syscall.EMFILE
	case bad < 32:
		n.startTime = slow
	}
	return n
}

// begins is the start of a process, which has come to an end.
func (k *worker) begins() {
	k.started, k.startedAt = true, time.Now()
	k.w.alive++
	if k.like.readyTime >= 0 {
		known := k.like.readyTime
		if k.w.link != mailbox {
			known += k.like.lag
		}
		time.AfterFunc(k.like.readyTime, func() {
			if k.w.link == listens {
				k.w.locked(k.begin)
			}
		})
		time.AfterFunc(known, k.becomeReady)
	}
	if k.like.lifetime > 0 {
		time.AfterFunc(max(k.like.readyTime, 0)+k.like.lifetime, func() { k.w.locked(func() { k.die(1) }) })
	}
}

func (k *worker) becomeReady() {
	k.w.locked(func() {
		if !k.isDead && !k.ready {
			k.ready, k.readyAt, k.roomSince = true, time.Now(), time.Now()
			close(k.isReady)
			time.AfterFunc(time.Millisecond, func() { k.w.locked(k.begin) })
		}
	})
}

func (k *worker) leave() {
	if k.ready && !k.hasLeft && !k.isDead {
		k.hasLeft = true
		k.closeListener()
		if k.w.link != listens { // which does not say so
			close(k.left)
		}
	}
}

// die ends the process, and with it the connections that it had accepted.
func (k *worker) die(code int) {
	if k.isDead || !k.started {
		return
	}
	if k.listener != nil && k.hangs {
		k.listener.blocked = time.Now()
	}
	k.isDead, k.exit = true, supervisor.Exit{Code: code}
	k.w.alive--
	close(k.dead)
	for c := range k.accepted {
		k.w.finish(c, "its worker died")
	}
	clear(k.accepted)
}

// deliver puts a connection into the mailbox, from which the worker takes it a moment later.
func (k *worker) deliver(c *connection) error {
	if len(k.mailbox) >= mailboxRoom {
		return fdpass.ErrFull
	}
	k.mailbox = append(k.mailbox, c)
	if len(k.mailbox) == mailboxRoom {
		k.roomSince = time.Time{}
	}
	time.AfterFunc(time.Millisecond, func() { k.w.locked(k.take) })
	return nil
}

func (k *worker) take() {
	if k.isDead || k.hangs || k.closed > 0 {
		return
	}
	for _, c := range k.mailbox {
		k.has(c)
	}
	k.mailbox = nil
	if k.roomSince.IsZero() {
		k.roomSince = time.Now()
	}
}

// has is when a connection is the worker's.
func (k *worker) has(c *connection) {
	c.owner = k.name + "'s"
	k.accepted[c] = true
	time.AfterFunc(c.serveTime, func() {
		k.w.locked(func() {
			if k.accepted[c] {
				delete(k.accepted, c)
				k.w.finish(c, "served by "+k.name)
			}
		})
	})
}

// handle is a worker as one master sees it: its process, its link, and what a slot is filled with. When another master has taken over,
// nothing that is done to the handle reaches the worker.
type handle struct {
	*worker
	m       *master
	lease   *kernelroute.Lease // of a link, where the kernel routes
	drainer *launch.Drainer    // of a link by which a signal tells the worker to finish
}

var errOver = errors.New("another master runs")

var gone = supervisor.Exit{Code: -1}

func (h handle) Launch(command []string) []string { return command }
func (h handle) Files() []*os.File                { return nil }
func (h handle) Env(func(string) string) []string { return []string{"WORKER=" + h.name} }
func (h handle) Ready() <-chan struct{}           { return h.isReady }
func (h handle) Left() <-chan struct{}            { return h.left }
func (h handle) Err() error                       { return errors.New("it has enough") }
func (h handle) DrainsGroup() bool                { return h.drainer != nil }
func (h handle) Finished() <-chan struct{}        { return nil }
func (h handle) Resume()                          {}
func (h handle) PID() int                         { return h.pid }
func (h handle) Rest() []int                      { return nil }
func (h handle) Wait() supervisor.Exit            { return h.Await() }

func (h handle) Save(*reexec.Bundle) (any, error) { return h.name, nil }

func (h handle) Ping() (alive bool) {
	if h.w.link == listens {
		return h.lease.Takes()
	}
	h.w.locked(func() { alive = !h.hangs })
	return alive
}

func (h handle) Started(p supervisor.Process) {
	if h.drainer != nil {
		h.drainer.Started(p)
	}
}

func (h handle) Await() supervisor.Exit {
	select {
	case <-h.dead:
		return h.exit
	case <-h.m.over:
		return gone
	}
}

func (h handle) Signal(sig syscall.Signal) {
	h.m.locked(func() {
		if sig == syscall.SIGTERM || sig == syscall.SIGKILL {
			h.w.noteSignal(h.worker)
		}
		switch {
		case sig == syscall.SIGKILL && h.like.killable:
			h.die(-1)
		case sig == syscall.SIGTERM && h.w.link == listens && h.begun && !h.finishes && !h.hangs:
			h.finishes = true
			h.closeListener()
			if h.like.drainTime >= 0 {
				time.AfterFunc(h.like.drainTime, func() { h.w.locked(func() { h.die(0) }) })
			}
		case sig == syscall.SIGTERM && h.like.heedsTerm && !h.hangs:
			time.AfterFunc(10*time.Millisecond, func() { h.w.locked(func() { h.die(0) }) })
		}
	})
}

func (h handle) Drain() {
	if h.drainer != nil {
		defer h.drainer.Drain()
	}
	h.m.locked(func() {
		if h.told {
			return
		}
		h.told = true
		h.w.noteDrain(h.worker)
		if h.listener != nil {
			time.AfterFunc(time.Second, func() { h.w.locked(h.closesWhenDrained) })
		}
		if h.drainer == nil && h.like.drainTime >= 0 && !h.hangs {
			time.AfterFunc(h.like.drainTime, func() { h.w.locked(func() { h.die(0) }) })
		}
	})
}

// closesWhenDrained: who is told by a word accepts for a while what was about to come.
func (k *worker) closesWhenDrained() {
	if k.w.link == accepts {
		k.closeListener()
	}
}

// Close takes back what the worker has not taken, as links do.
func (h handle) Close() {
	if h.drainer != nil {
		h.drainer.End()
	}
	var back []fdpass.Handoff
	h.m.locked(func() {
		if h.closed++; h.closed > 1 {
			h.w.fail("the link of %s is closed again", h.name)
		}
		if !h.isDead && h.started && h.like.killable {
			h.w.fail("the link of %s is closed while it lives", h.name)
		}
		for _, c := range h.mailbox {
			c.waits()
			back = append(back, c.handoff())
		}
		h.mailbox = nil
	})
	h.m.readmit(back)
}

// Deliver implements balancer.Worker.
func (h handle) Deliver(conns []fdpass.Handoff) (n int, err error) {
	err = fdpass.ErrClosed
	h.m.locked(func() {
		if h.closed > 0 {
			return
		}
		for _, taken := range conns {
			c := h.w.connections[taken.Client.Port()]
			h.w.checkDelivery(h.worker, c, taken.FD)
			if err = h.deliver(c); err != nil {
				return
			}
			c.owner = "in the mailbox of " + h.name
			n++
		}
	})
	return n, err
}

func (m *master) newLink(seat supervisor.Seat) (supervisor.Link, error) {
	if m.route == nil {
		return m.openLink(seat, nil)
	}
	return m.route.OpenLink(seat, func(l *kernelroute.Lease) (kernelroute.Link, error) { return m.openLink(seat, l) })
}

// link returns a worker's.
func (m *master) link(k *worker, l *kernelroute.Lease) handle {
	h := handle{worker: k, m: m, lease: l}
	if m.w.link == listens {
		h.drainer = launch.NewDrainer(launch.Drain{Signal: syscall.SIGTERM, Idle: l.Idle})
	}
	return h
}

func (m *master) openLink(seat supervisor.Seat, l *kernelroute.Lease) (kernelroute.Link, error) {
	var file *os.File
	if l != nil {
		file = l.Files()[0]
	}
	w, k := m.w, (*worker)(nil)
	m.locked(func() {
		nth := w.made[seat.Slot]
		w.made[seat.Slot]++
		k = &worker{
			w: w, seat: seat, pid: 100 + len(w.workers), like: w.natureOf(seat, nth), name: fmt.Sprint(seat.Slot, ordinal(nth)),
			isReady: make(chan struct{}), left: make(chan struct{}), dead: make(chan struct{}), accepted: make(map[*connection]bool),
		}
		if file != nil {
			k.listener = w.kernel.of(file)
		}
		w.workers = append(w.workers, k)
		alive := 0
		for _, other := range w.workers {
			if !other.isDead && other.closed == 0 {
				alive++
			}
		}
		w.mostAlive = max(w.mostAlive, alive)
	})
	if k == nil {
		return nil, errOver
	}
	return m.link(k, l), nil
}

// ordinal is a, b … z, ba, bb …
func ordinal(n int) string {
	if n < 26 {
		return string(rune('a' + n))
	}
	return ordinal(n/26) + ordinal(n%26)
}

func (m *master) start(spec supervisor.Spec) (_ supervisor.Process, err error) {
	var k *worker
	m.w.locked(func() {
		for _, other := range m.w.workers {
			for _, variable := range spec.Env {
				if variable == "WORKER="+other.name {
					k = other
				}
			}
		}
	})
	time.Sleep(k.like.startTime)
	if k.like.startErr != nil {
		return nil, k.like.startErr
	}
	m.w.locked(k.begins)
	return handle{worker: k, m: m}, nil
}

func (m *master) adopt(pid int) supervisor.Process { return handle{worker: m.w.byPID(pid), m: m} }

func (w *world) byPID(pid int) *worker { return w.workers[pid-100] }

func (m *master) restoreLink(_ supervisor.Seat, pid int, _ json.RawMessage) (supervisor.Link, error) {
	k := m.w.byPID(pid)
	if m.route == nil {
		return m.link(k, nil), nil
	}
	return m.route.RestoreLink(pid, func(l *kernelroute.Lease) (kernelroute.Link, error) {
		h := m.link(k, l)
		if h.drainer != nil {
			h.drainer.Started(handle{worker: k, m: m})
			if k.finishes {
				h.drainer.SetTold()
			}
		}
		return h, nil
	})
}

func (m *master) memory(pid int) (used int64) {
	m.w.locked(func() { used = m.w.workers[pid-100].memory })
	return used
}

var errIll = errors.New("it is ill")

func (m *master) checkHealth(_ context.Context, seat supervisor.Seat) (err error) {
	m.locked(func() {
		if k := m.at(seat.Slot); k != nil && k.isIll {
			err = errIll
		}
	})
	return err
}

// at returns the worker in a slot; nil: there is none.
func (m *master) at(slot int) *worker {
	if slot < len(m.table) {
		return m.table[slot]
	}
	return nil
}
