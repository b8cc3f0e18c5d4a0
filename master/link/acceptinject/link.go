package acceptinject

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
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/link/seccomp"
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

// Config is what an Link needs.
type Config struct {
	// Addresses are the balancer's; required. A socket that the worker binds to one of them gets
	// connections, whichever of the addresses they came to.
	Addresses []netip.AddrPort
	// Readmit takes ownership of connections that the worker did not accept. It must not keep the
	// slice and must not wait. Required.
	Readmit func([]fdpass.Handoff)
	Drain   launch.Drain
	Logger  hclog.Logger // nil: none
}

// Link is the master's side of one worker that is handed connections in answer to its calls
// of accept. It implements supervisor.Link and balancer.Worker. Two goroutines run for it, one
// that answers the filter and one that looks whether the worker is ready; Close ends both.
type Link struct {
	*foreign.Link
	addresses []foreign.Address
	readmit   func([]fdpass.Handoff)
	ceiling   int // of descriptors that are not needed

	mu       sync.Mutex
	doors    []*door
	knocked  int              // of the doors: where was knocked last
	queue    []fdpass.Handoff // accepted by nobody yet, the oldest first
	waiting  []waiter         // calls of accept that wait, the oldest first
	over     bool             // no more is taken
	accepted bool             // somebody has called accept since the last tick
	stale    int              // ticks since then with connections queued
	nextTick time.Time        // zero: none is needed
}

// Open makes a link for a worker that is not yet started.
func Open(cfg Config) (*Link, error) { return open(cfg, launch.AcceptInject) }

func open(cfg Config, mode launch.Mode) (*Link, error) {
	l := &Link{readmit: cfg.Readmit, ceiling: fdlimit.Ceiling()}
	for _, at := range cfg.Addresses {
		l.addresses = append(l.addresses, foreign.Address{AddrPort: netip.AddrPortFrom(at.Addr().Unmap(), at.Port())})
	}
	var err error
	if l.Link, err = foreign.Open(mode, cfg.Drain, cfg.Logger); err != nil {
		return nil, err
	}
	l.Go(l.run)
	return l, nil
}

// Deliver queues connections for the worker and takes ownership of the first n of conns; the
// caller still owns the others. It never waits: err is fdpass.ErrFull when the worker does not
// accept as fast, fdpass.ErrClosed when it takes no more.
func (l *Link) Deliver(conns []fdpass.Handoff) (n int, err error) {
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
		l.Notifs.SetDeadline(time.Unix(1, 0)) // run serves them
	}
	l.knock(len(l.queue) - len(l.waiting))
	l.plan()
	return n, err
}

// Served tells whether a socket of the worker is bound to the balancer's address.
func (l *Link) Served() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.doors) > 0
}

// Drain gives back what the worker has not accepted, and tells it to finish.
func (l *Link) Drain() {
	l.endFlow()
	l.EndRefused()
	l.Link.Drain()
}

// Close ends the link. Whatever of the worker goes on fails to accept (ENOSYS).
func (l *Link) Close() {
	l.endFlow()
	l.Link.Close()
	l.mu.Lock()
	doors := l.doors
	l.doors = nil
	l.mu.Unlock()
	for _, d := range doors {
		d.close()
	}
	l.giveBack() // run may have had one in its hands
}

// Save implements supervisor.Link: calls that wait in accept would wait for ever.
func (l *Link) Save(*reexec.Bundle) (any, error) { return nil, supervisor.ErrNotKept }

// Resume implements supervisor.Link: see Save.
func (l *Link) Resume() {}

// leave ends the flow before it says so.
func (l *Link) leave(err error) {
	l.endFlow()
	l.Link.Leave(err)
}

// endFlow takes no more, and gives back what is queued.
func (l *Link) endFlow() {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.giveBack()
}

func (l *Link) giveBack() {
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
func (l *Link) run() {
	if err := l.Hello(l.await); err != nil {
		l.leave(err)
		return
	}
	var n seccomp.Notification
	for {
		l.tend()
		err := l.Notifs.Next(&n)
		switch {
		case err == nil:
			reexec.Lock.RUnlock() // such workers cannot be kept anyway
			l.handle(&n)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		}
	}
}

// handle decides what happens to a call, and answers it.
func (l *Link) handle(n *seccomp.Notification) {
	caller := n.Caller()
	switch n.Call() {
	case unix.SYS_BIND:
		l.bind(n, caller)
	case unix.SYS_ACCEPT:
		l.accept(n, caller, 0)
	case unix.SYS_ACCEPT4:
		l.accept(n, caller, int(int32(n.Args[3])))
	case unix.SYS_LISTEN:
		if l.door(caller) != nil {
			l.Notifs.Answer(n.ID, 0)
		} else {
			l.Notifs.Continue(n.ID)
		}
	case unix.SYS_SHUTDOWN:
		if d := l.door(caller); d != nil {
			l.shut(d)
		}
		l.Notifs.Continue(n.ID)
	default:
		l.Notifs.Continue(n.ID)
	}
}

// bind answers a call of bind: a socket that would listen on a balancer's address becomes a door.
func (l *Link) bind(n *seccomp.Notification, caller seccomp.Caller) {
	wanted, family, err := l.wants(n, caller)
	var narrower *listening.NarrowerError
	switch {
	case !l.Notifs.StillValid(n.ID):
		// It was not this process that we have looked into.
		return
	case errors.As(err, &narrower):
		l.endFlow()
		l.Refuse(n.ID, err)
		return
	case err != nil:
		l.CannotSee(err)
		fallthrough
	case !wanted:
		l.Notifs.Continue(n.ID)
		return
	}
	l.mu.Lock()
	full := len(l.doors) >= maxDoors
	l.mu.Unlock()
	if full {
		l.Notifs.Answer(n.ID, unix.EADDRINUSE)
		return
	}
	d, err := openDoor(family)
	if err != nil {
		l.leave(err)
		l.Notifs.Continue(n.ID)
		return
	}
	flags := caller.Flags()
	unix.SetNonblock(d.fd, flags&unix.O_NONBLOCK != 0)
	errno := l.ReplaceSocket(n, caller, d.fd, flags&unix.O_CLOEXEC != 0)
	if errno == 0 {
		l.mu.Lock()
		l.doors = append(l.doors, d)
		l.AddRoot(caller.TID)
		l.mu.Unlock()
	} else {
		d.close()
		if l.Notifs.StillValid(n.ID) {
			l.leave(fmt.Errorf("acceptinject: a listener cannot be given to process %d: %w", caller.TID, os.NewSyscallError("ioctl", errno)))
		}
	}
	l.Notifs.Answer(n.ID, errno)
}

// wants tells whether a call of bind is for a balancer's address. The error is as for
// Link.standIn.
func (l *Link) wants(n *seccomp.Notification, caller seccomp.Caller) (wanted bool, family uint16, err error) {
	var narrower error
	bound, family, ok, err := caller.BindAddress(n)
	if err != nil || !ok {
		return false, 0, err
	}
	for _, at := range l.addresses {
		if at.Fit(foreign.Address{AddrPort: bound}) == 0 {
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
func (l *Link) door(caller seccomp.Caller) *door {
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
func (l *Link) shut(d *door) {
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
		l.Notifs.Answer(w.id, unix.EINVAL)
	}
	if last {
		l.leave(errShut)
	}
}

// errShut: then it gets no more connections.
var errShut = errors.New("acceptinject: the worker has closed its listening sockets")

// remove forgets a door, and tells whether it was the last. mu is held.
func (l *Link) remove(d *door) (last bool) {
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

// await closes ready when somebody waits at a door. Who calls accept there does, too.
func (l *Link) await() {
	for {
		for _, inode := range l.inodes() {
			socket := []listening.Listener{{Inode: inode}}
			if seen, err := listening.Listening(l.Roots(), socket); seen {
				l.MarkReady()
				return
			} else if err != nil {
				l.CannotSee(err)
			}
		}
		select {
		case <-l.Closed():
			return
		case <-l.Ready():
			return
		case <-time.After(tick):
		}
	}
}

func (l *Link) inodes() (all []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.doors {
		all = append(all, d.inode)
	}
	return all
}
