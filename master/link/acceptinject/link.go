package acceptinject

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/link/seccomp"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// maxQueue is how many connections wait for a worker to accept; then it is full.
	maxQueue = 128
	// maxWaiting is how many threads of a worker may wait in accept.
	maxWaiting = 4096
	// maxDecoys is how many sockets of a worker may be bound to the balancer's addresses.
	maxDecoys = 256
)

// Config is what a Link needs.
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
// of accept. It implements supervisor.Link and balancer.Worker. Three goroutines run for it: one
// answers the filter, one keeps house, and one looks whether the worker is ready. Close ends all.
type Link struct {
	*foreign.Link
	addresses []foreign.Address
	readmit   func([]fdpass.Handoff)
	todo      chan struct{} // see keepHouse; holds one

	mu        sync.Mutex
	decoys    []*decoy
	lastWoken int          // the decoy that got the last wake-up
	queue     []queued     // the oldest first
	waiting   []acceptCall // calls that wait, the oldest first
	stopped   bool         // no more is taken
	accepted  bool         // a call has come, or was answered, since the last tick
	calls     uint64       // that have come, or were answered
	progress  supervisor.Progress
	idleTicks int  // ticks since then with connections queued
	ticking   bool // there will be a tick
}

// Open makes a link for a worker that is not yet started.
func Open(cfg Config) (*Link, error) { return open(cfg, launch.AcceptInject) }

func open(cfg Config, mode launch.Mode) (*Link, error) {
	l := &Link{readmit: cfg.Readmit, todo: make(chan struct{}, 1)}
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
	if l.stopped || len(l.decoys) == 0 {
		return 0, fdpass.ErrClosed
	}
	if n = max(0, min(len(conns), maxQueue-len(l.queue))); n < len(conns) { // one that accept has failed to take is back in the queue, whatever its length
		err = fdpass.ErrFull
	}
	if n == 0 {
		return 0, err
	}
	for _, conn := range conns[:n] {
		l.queue = append(l.queue, queued{conn, familyOf(conn.FD)})
	}
	l.wakeup()
	if len(l.waiting) > 0 || !l.ticking {
		l.keepHouse()
	}
	return n, err
}

// Served tells whether a socket of the worker is bound to the balancer's address.
func (l *Link) Served() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.decoys) > 0
}

// Queued tells whether connections wait for the worker to accept them.
func (l *Link) Queued() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) > 0
}

// Ping implements supervisor.Link: it is false if connections were queued the last time, too, and the worker has not called
// accept since.
func (l *Link) Ping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.progress.Note(len(l.queue) > 0, l.calls)
}

// Drain returns what the worker has not accepted, and tells it to finish.
func (l *Link) Drain() {
	l.stop()
	l.Link.Drain()
}

// Close ends the link. The worker's processes fail to accept from then on (ENOSYS).
func (l *Link) Close() {
	l.stop()
	l.Link.Close()
	l.mu.Lock()
	decoys := l.decoys
	l.decoys = nil
	l.mu.Unlock()
	for _, d := range decoys {
		d.close()
	}
	l.returnQueue() // run may have had one in its hands
}

// Save implements supervisor.Link: calls that wait in accept would wait for ever.
func (l *Link) Save(*reexec.Bundle) (any, error) { return nil, supervisor.ErrNotKept }

// Resume implements supervisor.Link: see Save.
func (l *Link) Resume() {}

// leave stops before it says so.
func (l *Link) leave(err error) {
	l.stop()
	l.Link.Leave(err)
}

// stop takes no more, and returns what is queued.
func (l *Link) stop() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.returnQueue()
}

func (l *Link) returnQueue() {
	l.mu.Lock()
	var queue []fdpass.Handoff
	for _, q := range l.queue {
		queue = append(queue, q.Handoff)
	}
	l.queue = nil
	// Wake-ups stay: a thread that was woken by one may be about to call accept.
	l.mu.Unlock()
	if len(queue) > 0 {
		reexec.Lock.RLock()
		defer reexec.Lock.RUnlock()
		l.readmit(queue)
	}
}

// run answers the filter until no process has it any more, or Close.
func (l *Link) run() {
	if err := l.Hello(l.await); err != nil {
		l.leave(err)
		return
	}
	l.Go(l.housekeep)
	var n seccomp.Notification
	for {
		err := l.Notifs.Next(&n)
		switch {
		case err == nil:
			reexec.Lock.RUnlock() // such workers cannot be kept anyway
			l.handle(&n)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if !l.NobodyAsks(err) {
				l.leave(err)
			}
			return
		}
	}
}

// handle decides what happens to a call, and answers it.
func (l *Link) handle(n *seccomp.Notification) {
	caller := n.Caller()
	switch n.Call() {
	case unix.SYS_BIND:
		l.handleBind(n, caller)
	case sock.CallAccept:
		l.handleAccept(n, caller, 0)
	case unix.SYS_ACCEPT4:
		l.handleAccept(n, caller, int(int32(n.Args[3])))
	case unix.SYS_LISTEN:
		if l.decoyOf(caller) != nil {
			l.Notifs.Answer(n.ID, 0)
		} else {
			l.Notifs.Continue(n.ID)
		}
	case unix.SYS_SHUTDOWN:
		if d := l.decoyOf(caller); d != nil {
			l.shutDown(d)
		}
		l.Notifs.Continue(n.ID)
	default:
		l.Notifs.Continue(n.ID)
	}
}

// await closes Ready when the worker waits at a decoy. A call of accept there does so, too.
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
