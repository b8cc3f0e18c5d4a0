package trap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// maxQueue is how many connections wait for a worker to accept; then it is full. Each
	// costs another descriptor for its knock.
	maxQueue = 128
	// maxWaiting is how many threads of a worker may wait in accept.
	maxWaiting = 4096
	// maxDoors is how many sockets of a worker may be bound to the balancer's addresses.
	maxDoors = 256
	// tick is the time between two looks at what nobody tells us: signals for threads that wait
	// in accept, and connections that nobody fetches.
	tick = 50 * time.Millisecond
	// staleTicks is for how many of them nobody may accept before we look whether anybody still
	// has a socket to accept from.
	staleTicks = 20
)

// InjectorConfig is what an Injector needs.
type InjectorConfig struct {
	// Addresses are the balancer's; required. A socket that the worker binds to one of them gets
	// connections, whichever of the addresses they came to.
	Addresses []netip.AddrPort
	// Readmit takes ownership of connections that the worker did not accept. It must not keep the
	// slice and must not wait. Required.
	Readmit func([]fdpass.Handoff)
	Drain   launch.Drain
	Logger  hclog.Logger // nil: none
}

// Injector is the master's side of one worker that is handed connections in answer to its calls
// of accept. It implements supervisor.Link and balancer.Worker. Two goroutines run for it, one
// that answers the filter and one that looks whether the worker is ready; Close ends both.
type Injector struct {
	child
	addresses []Address
	readmit   func([]fdpass.Handoff)
	isReady   sync.Once
	ceiling   int // of descriptors that are not needed

	// Under mu.
	doors    []*door
	knocked  int              // of the doors: where was knocked last
	queue    []fdpass.Handoff // accepted by nobody yet, the oldest first
	waiting  []waiter         // calls of accept that wait, the oldest first
	over     bool             // no more is taken
	accepted bool             // somebody has called accept since the last tick
	stale    int              // ticks since then with connections queued
	nextTick time.Time        // zero: none is needed
}

// OpenInjector makes a link for a worker that is not yet started.
func OpenInjector(cfg InjectorConfig) (*Injector, error) { return openInjector(cfg, launch.Inject) }

func openInjector(cfg InjectorConfig, mode launch.Mode) (*Injector, error) {
	l := &Injector{child: newChild(cfg.Drain, cfg.Logger), readmit: cfg.Readmit, ceiling: fdlimit.Ceiling()}
	for _, at := range cfg.Addresses {
		l.addresses = append(l.addresses, Address{AddrPort: netip.AddrPortFrom(at.Addr().Unmap(), at.Port())})
	}
	control, err := launch.Open(mode)
	if err != nil {
		return nil, fmt.Errorf("trap: %w", err)
	}
	l.control = control
	l.done.Go(l.run)
	return l, nil
}

// Deliver queues connections for the worker and takes ownership of the first n of conns; the
// caller still owns the others. It never waits: err is fdpass.ErrFull when the worker does not
// accept as fast, fdpass.ErrClosed when it takes no more.
func (l *Injector) Deliver(conns []fdpass.Handoff) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || len(l.doors) == 0 {
		return 0, fdpass.ErrClosed
	}
	if n = min(len(conns), maxQueue-len(l.queue)); n < len(conns) {
		err = fdpass.ErrFull
	}
	if n == 0 {
		return 0, err
	}
	l.queue = append(l.queue, conns[:n]...)
	if len(l.waiting) > 0 {
		l.asked.SetDeadline(time.Unix(1, 0)) // run serves them
	}
	l.knock(len(l.queue) - len(l.waiting))
	l.plan()
	return n, err
}

// Served tells whether a socket of the worker is bound to the balancer's address.
func (l *Injector) Served() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.doors) > 0
}

// Drain gives back what the worker has not accepted, and tells it to finish.
func (l *Injector) Drain() {
	l.endFlow()
	l.endRefused()
	l.Drainer.Drain()
}

// Close ends the link. Whatever of the worker goes on fails to accept (ENOSYS).
func (l *Injector) Close() {
	l.endFlow()
	l.child.Close()
	l.mu.Lock()
	doors := l.doors
	l.doors = nil
	l.mu.Unlock()
	for _, d := range doors {
		d.close()
	}
	l.giveBack() // run may have had one in its hands
}

// Save implements supervisor.Link: who waits in accept would wait for ever.
func (l *Injector) Save(*reexec.Bundle) (any, error) { return nil, supervisor.ErrNotKept }

// Resume implements supervisor.Link: see Save.
func (l *Injector) Resume() {}

// leave ends the flow before it says so.
func (l *Injector) leave(err error) {
	l.endFlow()
	l.child.leave(err)
}

// endFlow takes no more, and gives back what is queued.
func (l *Injector) endFlow() {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.giveBack()
}

func (l *Injector) giveBack() {
	l.mu.Lock()
	queue := l.queue
	l.queue = nil
	// Knocks stay: a thread that was woken by one may be about to call accept.
	l.mu.Unlock()
	if len(queue) > 0 {
		l.readmit(queue)
	}
}

// run answers the filter, and serves calls of accept that wait, until no process has the filter any
// more, or Close.
func (l *Injector) run() {
	if err := l.hello(l.await); err != nil {
		l.leave(err)
		return
	}
	var n Notification
	for {
		l.tend()
		err := l.asked.Next(&n)
		switch {
		case err == nil:
			reexec.Lock.RUnlock() // such workers cannot be kept anyway
			l.judge(&n)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		}
	}
}

// judge decides what happens to a call, and answers it.
func (l *Injector) judge(n *Notification) {
	caller := Caller{int(n.PID), int(int32(n.Args[0]))}
	switch launch.Call(n.Number) {
	case unix.SYS_BIND:
		l.bind(n, caller)
	case unix.SYS_ACCEPT:
		l.accept(n, caller, 0)
	case unix.SYS_ACCEPT4:
		l.accept(n, caller, int(int32(n.Args[3])))
	case unix.SYS_LISTEN:
		if l.door(caller) != nil {
			l.asked.Answer(n.ID, 0)
		} else {
			l.asked.Continue(n.ID)
		}
	case unix.SYS_SHUTDOWN:
		if d := l.door(caller); d != nil {
			l.shut(d)
		}
		l.asked.Continue(n.ID)
	default:
		l.asked.Continue(n.ID)
	}
}

// bind answers a call of bind: a socket that would listen on a balancer's address becomes a door.
func (l *Injector) bind(n *Notification, caller Caller) {
	wanted, family, err := l.wants(n, caller)
	var narrower *listening.NarrowerError
	switch {
	case !l.asked.StillValid(n.ID):
		// It was not this process that we have looked into.
		return
	case errors.As(err, &narrower):
		l.endFlow()
		l.refuse(n.ID, err)
		return
	case err != nil:
		l.cannotSee(err)
		fallthrough
	case !wanted:
		l.asked.Continue(n.ID)
		return
	}
	l.mu.Lock()
	full := len(l.doors) >= maxDoors
	l.mu.Unlock()
	if full {
		l.asked.Answer(n.ID, unix.EADDRINUSE)
		return
	}
	d, err := openDoor(family)
	if err != nil {
		l.leave(err)
		l.asked.Continue(n.ID)
		return
	}
	flags := caller.Flags()
	unix.SetNonblock(d.fd, flags&unix.O_NONBLOCK != 0)
	errno := l.substitute(n, caller, d.fd, flags&unix.O_CLOEXEC != 0)
	if errno == 0 {
		l.mu.Lock()
		l.doors = append(l.doors, d)
		l.isRoot(caller.TID)
		l.mu.Unlock()
	} else {
		d.close()
		if l.asked.StillValid(n.ID) {
			l.leave(fmt.Errorf("trap: a listener cannot be given to process %d: %w", caller.TID, os.NewSyscallError("ioctl", errno)))
		}
	}
	l.asked.Answer(n.ID, errno)
}

// wants tells whether a call of bind is for a balancer's address. The error is as for
// Link.standIn.
func (l *Injector) wants(n *Notification, caller Caller) (wanted bool, family uint16, err error) {
	var narrower error
	bound, family, ok, err := caller.BindAddress(n)
	if err != nil || !ok {
		return false, 0, err
	}
	for _, at := range l.addresses {
		if at.Fit(Address{AddrPort: bound}) == 0 {
			continue
		}
		if !wanted {
			if wanted, err = caller.IsTCP(family); err != nil || !wanted {
				return false, 0, err
			}
		}
		narrower = listening.Narrower(bound, at.AddrPort)
		if narrower == nil {
			return true, family, nil
		}
	}
	return wanted, family, narrower
}

// door returns the door that a descriptor is, or nil.
func (l *Injector) door(caller Caller) *door {
	l.mu.Lock()
	none := len(l.doors) == 0
	l.mu.Unlock()
	if none {
		return nil
	}
	inode := listening.Socket(caller.TID, caller.FD)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.doors {
		if d.inode == inode {
			return d
		}
	}
	return nil
}

// shut is for a door of which the receiving side is shut down: calls that wait there fail, as with
// any listener, and no other will wait there.
func (l *Injector) shut(d *door) {
	l.mu.Lock()
	var gone []waiter
	kept := l.waiting[:0]
	for _, w := range l.waiting {
		if w.door == d {
			gone = append(gone, w)
		} else {
			kept = append(kept, w)
		}
	}
	l.waiting = kept
	last := l.remove(d)
	l.mu.Unlock()
	for _, w := range gone {
		l.asked.Answer(w.id, unix.EINVAL)
	}
	if last {
		l.leave(errShut)
	}
}

// errShut: then it gets no more connections.
var errShut = errors.New("trap: the worker has closed its listening sockets")

// remove forgets a door, and tells whether it was the last. mu is held.
func (l *Injector) remove(d *door) (last bool) {
	for i := range l.doors {
		if l.doors[i] == d {
			l.doors = append(l.doors[:i:i], l.doors[i+1:]...)
			d.close()
			last = len(l.doors) == 0
			break
		}
	}
	l.knock(len(l.queue) - len(l.waiting))
	return last
}

// nowReady says that the worker waits for connections.
func (l *Injector) nowReady() { l.isReady.Do(func() { close(l.ready) }) }

// await closes ready when somebody waits at a door. Who calls accept there does, too.
func (l *Injector) await() {
	for {
		for _, inode := range l.inodes() {
			socket := []listening.Listener{{Inode: inode}}
			if seen, err := listening.Listening(l.roots(), socket); seen {
				l.nowReady()
				return
			} else if err != nil {
				l.cannotSee(err)
			}
		}
		select {
		case <-l.ended:
			return
		case <-l.ready:
			return
		case <-time.After(tick):
		}
	}
}

func (l *Injector) inodes() (all []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.doors {
		all = append(all, d.inode)
	}
	return all
}
