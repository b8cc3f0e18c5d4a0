package balancer

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/unixsocket"
)

const (
	// acceptPause is how long accepting rests when the kernel has no descriptor or
	// memory for another connection. Clients wait in the listener's backlog.
	acceptPause = 50 * time.Millisecond

	// LastGrace is how long, at the end, clients have from their first packet to being
	// connected, and behind a proxy to their first bytes.
	LastGrace = 100 * time.Millisecond

	// pauseLogInterval is the shortest time between two logged pauses.
	pauseLogInterval = time.Second
)

const (
	crowd      = 4                    // connections in a batch from which on to yield
	longYield  = 2 * time.Millisecond // less than a time slice of a process that computes
	yieldAgain = 64                   // batches without, after a long one
)

// acceptor takes connections from one listener and routes them. It runs in the
// goroutine that calls run.
type acceptor struct {
	b      *Balancer
	file   *os.File // the listener; an os.File, since a net.Listener cannot be read raw
	raw    syscall.RawConn
	router router
	shared bool             // with workers, which may do to the listener what they like
	name   *unixsocket.Name // of a Unix socket; nil: it is a TCP listener
	flags  fdpass.Flags     // of its connections

	majority majority // of its connections

	// One turn: what take found.
	batch   []connection
	peeks   bool   // whether connections are peeked at
	peek    []byte // and into what, one after the other
	err     error  // why it ended, when not for want of connections or of room
	ceiling int    // descriptor from which on files are scarce
	scarce  bool   // a descriptor reached the ceiling

	noYield int       // batches after which to yield again
	said    time.Time // when a pause was logged last

	peer    unix.RawSockaddrInet6 // large enough for both families
	peerLen uint32
}

// newAcceptor takes ownership of ln.
func newAcceptor(b *Balancer, ln net.Listener) (*acceptor, error) {
	var file *os.File
	var name *unixsocket.Name
	var err error
	switch ln := ln.(type) {
	case *net.TCPListener:
		defer ln.Close() // the file is a duplicate of its descriptor
		file, err = ln.File()
	case *unixsocket.Listener:
		defer ln.UnixListener.Close() // likewise
		name = ln.Name()
		file, err = ln.File()
	default:
		defer ln.Close()
		return nil, fmt.Errorf("balancer: cannot hand off connections of a %T, only of a *net.TCPListener or a *unixsocket.Listener", ln)
	}
	if err != nil {
		return nil, fmt.Errorf("balancer: %w", err)
	}
	a, err := acceptFrom(b, file)
	if err != nil {
		return nil, err
	}
	if name != nil {
		a.name, a.flags = name, fdpass.FlagUnix
		return a, nil
	}
	err = fdpass.SetOptions(a.raw)
	if err == nil {
		err = deferAccept(a.raw, a.peeks)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("balancer: %w", err)
	}
	return a, nil
}

// acceptFrom takes ownership of a non-blocking listener.
func acceptFrom(b *Balancer, file *os.File) (*acceptor, error) {
	raw, err := file.SyscallConn()
	if err == nil {
		err = sock.ControlRaw(raw, func(fd int) error {
			at, err := sock.Local(fd)
			switch {
			case err == nil && at.IsValid():
				b.addAddress(at)
			case err == nil:
				b.addName(sock.Name(fd))
			}
			return err
		})
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("balancer: %w", err)
	}
	return &acceptor{
		b:       b,
		file:    file,
		raw:     raw,
		router:  b.newRouter(),
		batch:   make([]connection, 0, fdpass.MaxBatch),
		peeks:   b.clients.Peeks(),
		peek:    b.clients.Buffer(),
		ceiling: fdlimit.Ceiling(),
	}, nil
}

// run accepts until ctx ends, and then the connections that clients believe to be established.
func (a *acceptor) run(ctx context.Context) error {
	defer a.file.Close()
	if a.name != nil {
		defer a.name.Remove()
	}
	if err := a.acceptUntil(ctx); err != nil {
		return err
	}
	// From now on nobody connects, but handshakes under way are let in: the last packet of
	// a handshake may be under way, and the first bytes of a client that the kernel
	// tells of only then (deferAccept).
	reopen := a.stopConnecting()
	a.peeks = true // for all that is left, whatever it is: it is not switched on again
	grace, cancel := context.WithTimeout(context.Background(), LastGrace)
	defer cancel()
	if err := a.acceptUntil(grace); err != nil {
		return err
	}
	if err := a.takeBacklog(); err != nil {
		return err
	}
	reopen()
	return nil
}

// stopConnecting has nobody connect any more who has not begun to, until reopen is called, since a service manager may go on with
// a listener. Without a name of its own, a Unix socket goes on.
func (a *acceptor) stopConnecting() (reopen func()) {
	if a.name != nil {
		a.name.Remove()
		return func() {}
	}
	err := dropSYNs(a.raw)
	deferAccept(a.raw, false)
	return func() {
		if err == nil {
			passSYNs(a.raw)
		}
	}
}

func (a *acceptor) acceptUntil(ctx context.Context) error {
	a.file.SetReadDeadline(time.Time{})
	over := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(over)
		a.file.SetReadDeadline(time.Unix(1, 0))
	})()
	turn := a.turn
	for {
		err := a.raw.Read(turn)
		switch {
		case err != nil && ctx.Err() != nil:
			<-over // else it could end the next wait
			return nil
		case err != nil:
			return fmt.Errorf("balancer: %w", err)
		case isFatal(a.err):
			return fmt.Errorf("balancer: %w", os.NewSyscallError("accept4", a.err))
		case a.err != nil || a.scarce:
			a.rest(ctx)
		}
	}
}

// turn takes a batch and routes it. It returns false when there was nothing more,
// to wait in the poller: what has come since its last look wakes it.
func (a *acceptor) turn(listener uintptr) bool {
	reexec.Lock.RLock()
	a.take(listener)
	n := len(a.batch)
	a.flush()
	reexec.Lock.RUnlock()
	return n == cap(a.batch) || a.err != nil || a.scarce || a.yield(n)
}

// yield lets others run after a batch of n, and reports whether it is worth to
// look again without waiting in the poller.
//
// Under load the processors are busy, and the master would be woken for every
// other connection. If it goes to the end of the processor's queue instead, it
// finds all that came meanwhile: less is spent on waking, here and in the
// workers, and messages carry more. With an idle processor it comes back at once.
//
// But the processes that run instead may compute for long, and then clients wait: after a
// yield longer than longYield there are none for a while.
func (a *acceptor) yield(n int) bool {
	if a.noYield > 0 {
		a.noYield--
		return false
	}
	if n < crowd {
		return false
	}
	start := time.Now()
	unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	if time.Since(start) > longYield {
		a.noYield = yieldAgain
	}
	return true
}

// takeBacklog accepts what is there. It does not wait for more, only for free
// descriptors: what is parked gives them back when its patience is over.
func (a *acceptor) takeBacklog() error {
	ctx, cancel := context.WithTimeout(context.Background(), a.b.Patience()+lingerTimeout+time.Second)
	defer cancel()
	for more := true; more; {
		reexec.Lock.RLock()
		err := a.raw.Control(func(fd uintptr) { more = a.take(fd) })
		a.flush()
		reexec.Lock.RUnlock()
		if err != nil {
			return fmt.Errorf("balancer: %w", err)
		}
		switch {
		case isFatal(a.err), a.err != nil && ctx.Err() != nil:
			return fmt.Errorf("balancer: backlog: %w", os.NewSyscallError("accept4", a.err))
		case a.err != nil || a.scarce:
			a.rest(ctx)
		}
		more = more && ctx.Err() == nil // if SYNs could not be dropped, this may go on
	}
	return nil
}

// take accepts connections until the batch is full or there are no more. It
// returns false when there was none.
func (a *acceptor) take(listener uintptr) bool {
	reexec.Lock.MustHold()
	a.err, a.scarce = nil, false
	if a.shared {
		unix.SetNonblock(int(listener), true)
	}
	for len(a.batch) < cap(a.batch) && !a.scarce && a.err == nil {
		if !a.takeOne(listener) {
			return len(a.batch) > 0
		}
	}
	return true
}

// takeOne accepts a connection, and returns false when there is none.
func (a *acceptor) takeOne(listener uintptr) bool {
	fd, errno := a.accept(listener)
	switch errno {
	case 0:
		a.batch = append(a.batch, connection{Handoff: fdpass.Handoff{FD: fd, Client: sock.RawAddrPort(&a.peer), Flags: a.flags}})
		a.scarce = fd >= a.ceiling
	case unix.EAGAIN:
		return false
	case unix.EINTR, unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN, unix.ENOPROTOOPT,
		unix.EHOSTDOWN, unix.ENONET, unix.EHOSTUNREACH, unix.EOPNOTSUPP, unix.ENETUNREACH:
		// The connection is broken already (man 2 accept). There may be more.
	default:
		a.err = errno
	}
	return true
}

func (a *acceptor) flush() {
	reexec.Lock.MustHold()
	if len(a.batch) == 0 {
		return
	}
	a.b.ledger.accepted.Add(uint64(len(a.batch)))
	if !a.peeks && a.b.clients.Peeks() {
		a.peeks, a.peek = true, a.b.clients.Buffer()
		if a.name == nil {
			deferAccept(a.raw, true)
		}
	}
	known := a.b.identify(a.batch, a.peek)
	if !a.shared { // else workers accept, too, and who is left says nothing
		a.b.advice.look(known, &a.majority)
	}
	a.router.route(known)
	a.batch = a.batch[:0]
}

// rest waits until there are descriptors again, or for a moment when the kernel is
// short of something else.
//
// Idle connections make room first.
func (a *acceptor) rest(ctx context.Context) {
	reexec.Lock.RLock()
	a.b.idlers.shed(cap(a.batch))
	reexec.Lock.RUnlock()
	start := time.Now()
	say := start.Sub(a.said) >= pauseLogInterval
	for paused := false; a.err != nil || fdlimit.Scarce(); paused = true {
		if say && !paused {
			a.said = start
			a.b.ledger.log.Error("accept paused: "+shortage(a.err), "parked", a.b.waitlist.len())
		}
		select {
		case <-time.After(acceptPause):
		case <-ctx.Done():
			return
		}
		a.err = nil
	}
	if say && a.said == start {
		a.b.ledger.log.Info("accept resumed", "after", time.Since(start).Round(time.Millisecond).String())
	}
}

// shortage says what accepting lacks, and the remedy.
func shortage(err error) string {
	switch err {
	case nil, unix.EMFILE:
		return fmt.Sprintf("no free file descriptors (limit %d); raise it with ulimit -n or LimitNOFILE=", fdlimit.Limit())
	case unix.ENFILE:
		return "the system has no free files; raise the sysctl fs.file-max"
	default:
		return err.Error()
	}
}

// isFatal tells whether accepting from this listener can never succeed again.
func isFatal(err error) bool {
	return err == unix.EBADF || err == unix.EINVAL || err == unix.ENOTSOCK || err == unix.EFAULT
}

// accept is accept4(2) into a.peer. unix.Accept4 allocates the address.
//
// The system calls of the straight line never wait, so they are raw: an ordinary
// one tells Go's scheduler, and after every pause in which the process was idle
// the first of them wakes the runtime's monitor thread (runtime.sysmon), which
// then polls every 20 µs: more than a quarter of all the master's time.
func (a *acceptor) accept(listener uintptr) (fd int, errno syscall.Errno) {
	a.peerLen = unix.SizeofSockaddrInet6
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	var r uintptr
	// Called by name: only then pointers may be passed as numbers (package unsafe, rule 4).
	if a.shared { // it may wait, if a worker has just made the listener blocking
		r, _, errno = unix.Syscall6(unix.SYS_ACCEPT4, listener,
			uintptr(unsafe.Pointer(&a.peer)), uintptr(unsafe.Pointer(&a.peerLen)), flags, 0, 0)
	} else {
		r, _, errno = unix.RawSyscall6(unix.SYS_ACCEPT4, listener,
			uintptr(unsafe.Pointer(&a.peer)), uintptr(unsafe.Pointer(&a.peerLen)), flags, 0, 0)
	}
	return int(r), errno
}
