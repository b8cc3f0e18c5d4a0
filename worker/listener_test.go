package worker_test

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

// says fails unless the worker's next message is of this type.
func says(t *testing.T, master *fdpass.Conn, want fdpass.Type) {
	t.Helper()
	if m := next(t, master); m.Type != want {
		t.Fatalf("the worker said %s, want %s", m.Type, want)
	}
}

// acceptClosed wants Accept to say that there will be no more.
func acceptClosed(t *testing.T, ln *worker.Listener) {
	t.Helper()
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want ErrClosed", err)
	}
}

// idle wants Wait to return because all connections are closed.
func idle(t *testing.T, ln *worker.Listener) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	fdtest.Check(t, ln.Wait(ctx))
}

func draining(ln *worker.Listener) bool {
	select {
	case <-ln.Draining():
		return true
	default:
		return false
	}
}

// The first Accept says ready, once.
func TestAcceptSaysReady(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln := mailbox(t, worker.Config{})
	handOff(t, master, fdpass.TypeHandoff, 2)
	accept(t, ln)
	accept(t, ln)
	fdtest.Check(t, ln.Ready())
	fdtest.Check(t, ln.Close())
	says(t, master, fdpass.TypeReady)
	says(t, master, fdpass.TypeLeave)

	master, ln = mailbox(t, worker.Config{})
	fdtest.Check(t, ln.Close())
	says(t, master, fdpass.TypeLeave) // Listen has not said ready
}

func TestManualReady(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln := mailbox(t, worker.Config{ManualReady: true})
	handOff(t, master, fdpass.TypeHandoff, 1)
	accept(t, ln)
	fdtest.Check(t, ln.Close())
	says(t, master, fdpass.TypeLeave)

	master, ln = mailbox(t, worker.Config{ManualReady: true})
	fdtest.Check(t, ln.Ready())
	fdtest.Check(t, ln.Ready())
	fdtest.Check(t, ln.Close())
	says(t, master, fdpass.TypeReady)
	says(t, master, fdpass.TypeLeave)
}

// At a drain, and when the master is gone, all that was handed off is accepted first.
func TestDrain(t *testing.T) {
	for name, end := range map[string]func(*fdpass.Conn) error{
		"drain":       (*fdpass.Conn).CloseWrite,
		"master gone": (*fdpass.Conn).Close,
	} {
		t.Run(name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			master, ln := mailbox(t, worker.Config{})
			clients := handOff(t, master, fdpass.TypeHandoff, 3)
			clients = append(clients, handOff(t, master, fdpass.TypeHandoff, 1)...)
			fdtest.Check(t, end(master))
			for _, client := range clients {
				c := accept(t, ln)
				if draining(ln) {
					t.Error("draining before everything was accepted")
				}
				if got, want := c.RemoteAddr().String(), client.LocalAddr().String(); got != want {
					t.Errorf("accepted %s, want %s: the order of the handoffs", got, want)
				}
				write(t, client, "hello")
				read(t, c, "hello")
			}
			acceptClosed(t, ln)
			acceptClosed(t, ln)
			if !draining(ln) {
				t.Error("not draining")
			}
			fdtest.Check(t, ln.Close())
		})
	}
}

func TestCloseUnblocksAccept(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln := mailbox(t, worker.Config{})
	const acceptors = 4
	failed := make(chan error)
	for range acceptors {
		go func() { _, err := ln.Accept(); failed <- err }()
	}
	says(t, master, fdpass.TypeReady) // so one of them is on its way into Accept
	fdtest.Check(t, ln.Close())
	for range acceptors {
		var op *net.OpError
		if err := fdtest.Receive(t, "Accept", failed); !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) || op.Op != "accept" {
			t.Errorf("Accept: %v, want ErrClosed", err)
		}
	}
	says(t, master, fdpass.TypeLeave)
	fdtest.Check(t, ln.Close())
	acceptClosed(t, ln)
	idle(t, ln)
}

// Close gives back what was received but not accepted, and leaves in the mailbox
// what was not received.
func TestCloseGivesBack(t *testing.T) {
	fdtest.NoLeaks(t)
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	closing(t, master)
	fd := fdtest.Duplicate(t, file) // as a master keeps one
	ln, err := worker.Config{Mailbox: file, ManualReady: true}.Listen()
	fdtest.Check(t, err)
	clients := handOff(t, master, fdpass.TypeHandoff, 3)
	unreceived := handOff(t, master, fdpass.TypeHandoff, 1)
	accepted := accept(t, ln)
	fdtest.Check(t, ln.Close())

	says(t, master, fdpass.TypeLeave)
	back := next(t, master)
	if back.Type != fdpass.TypeReturn || len(back.Handoffs) != 2 {
		t.Fatalf("got %s with %d connections, want return with 2", back.Type, len(back.Handoffs))
	}
	theirs, err := fdpass.NewConn(os.NewFile(uintptr(fd), "the worker's end"))
	fdtest.Check(t, err)
	closing(t, theirs)
	left := next(t, theirs)
	clients, back.Handoffs = append(clients, unreceived...), append(back.Handoffs, left.Handoffs...)
	for i, h := range back.Handoffs {
		client := clients[i+1]
		if h.Client != addrPort(client.LocalAddr()) {
			t.Errorf("got back %v, want %v", h.Client, client.LocalAddr())
		}
		unix.Write(h.FD, []byte("alive"))
		read(t, client, "alive")
	}
	fdpass.CloseHandoffs(back.Handoffs)
	write(t, accepted, "alive")
	read(t, clients[0], "alive")
}

// A closed connection counts once, and Wait waits for the last.
func TestWait(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln := mailbox(t, worker.Config{})
	handOff(t, master, fdpass.TypeHandoff, 2)
	a, b := accept(t, ln), accept(t, ln)
	waits := func(why string) {
		t.Helper()
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New(why)
		cancel(cause)
		if err := ln.Wait(ctx); err != cause {
			t.Errorf("%s: Wait returned %v", why, err)
		}
	}
	open := func(want int) {
		t.Helper()
		if got := ln.Open(); got != want {
			t.Errorf("%d open, want %d", got, want)
		}
	}
	open(2)
	fdtest.Check(t, a.Close())
	if err := a.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	open(1)
	fdtest.Check(t, b.Close())
	open(0)
	waits("nothing is open, but more may come")

	handOff(t, master, fdpass.TypeHandoff, 1)
	a = accept(t, ln)
	fdtest.Check(t, ln.Close())
	waits("closed, but a connection is open")
	done := make(chan error)
	go func() { done <- ln.Wait(t.Context()) }()
	fdtest.Check(t, a.Close())
	fdtest.Check(t, fdtest.Receive(t, "Wait", done))
}

// Accept, Close of connections, twice, and a drain, all at the same time.
func TestConcurrent(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln := mailbox(t, worker.Config{})
	const batches, batch, acceptors = 40, 3, 4
	var accepted, closed sync.WaitGroup
	var count [acceptors]int
	for i := range acceptors {
		accepted.Go(func() {
			for {
				c, err := ln.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				count[i]++
				closed.Go(func() { c.Close() })
				closed.Go(func() { c.Close() })
			}
		})
	}
	for range batches {
		handOff(t, master, fdpass.TypeHandoff, batch)
	}
	fdtest.Check(t, master.CloseWrite())
	idle(t, ln)
	accepted.Wait()
	closed.Wait()
	total := 0
	for _, n := range count {
		total += n
	}
	if total != batches*batch || ln.Open() != 0 {
		t.Errorf("accepted %d, %d open; want %d and 0", total, ln.Open(), batches*batch)
	}
}

// TestUnknownMessage: a message of a later version is ignored, and its descriptors are closed.
func TestUnknownMessage(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln := mailbox(t, worker.Config{})
	strangers := handOff(t, master, 99, 2)
	handOff(t, master, 98, 0)
	handOff(t, master, fdpass.TypeHandoff, 0)
	clients := handOff(t, master, fdpass.TypeHandoff, 1)
	c := accept(t, ln)
	if got, want := c.RemoteAddr().String(), clients[0].LocalAddr().String(); got != want {
		t.Errorf("accepted %s, want %s", got, want)
	}
	for _, stranger := range strangers {
		readEOF(t, stranger)
	}
}

// rawMailbox is mailbox with the descriptor of the master's end, for saying what
// the protocol forbids.
func rawMailbox(t *testing.T) (fd int, master *fdpass.Conn, ln *worker.Listener) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	fdtest.Check(t, unix.SetNonblock(fds[0], true))
	master, err = fdpass.NewConn(os.NewFile(uintptr(fds[0]), "master"))
	fdtest.Check(t, err)
	closing(t, master)
	ln, err = worker.Config{Mailbox: os.NewFile(uintptr(fds[1]), "worker")}.Listen()
	fdtest.Check(t, err)
	return fds[0], master, closing(t, ln)
}

// A message that is not one ends the listener: its error is not temporary, and a
// drain begins.
func TestMalformedMessage(t *testing.T) {
	fdtest.NoLeaks(t)
	fd, master, ln := rawMailbox(t)
	handOff(t, master, fdpass.TypeHandoff, 1)
	c := accept(t, ln)
	stranger, client := ordinary(t, anyPort)
	fdtest.Control(t, stranger, func(stranger int) error {
		return unix.Sendmsg(fd, []byte("nonsense"), unix.UnixRights(stranger), nil, 0)
	})
	stranger.Close()
	_, err := ln.Accept()
	if temporary(err) || errors.Is(err, net.ErrClosed) || !errors.Is(err, fdpass.ErrMalformed) {
		t.Errorf("Accept: %v, want ErrMalformed", err)
	}
	readEOF(t, client)
	if !draining(ln) {
		t.Error("not draining")
	}
	acceptClosed(t, ln)
	says(t, master, fdpass.TypeReady)
	fdtest.Check(t, ln.Close())
	says(t, master, fdpass.TypeLeave)
	fdtest.Check(t, c.Close())
	idle(t, ln)
}

// At the limit of open files Accept fails as an ordinary listener's does, and the
// connection is accepted when there is room again.
func TestFileLimit(t *testing.T) {
	if !inChild(t) {
		return
	}
	for _, limit := range []uint64{200, 700} { // below and above what fdpass calls near
		fdtest.Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: 1024}))
		master, ln := mailbox(t, worker.Config{})
		server, client := ordinary(t, anyPort)
		var open []net.Conn
		var err error
		for err == nil {
			fdtest.Control(t, server, func(fd int) error {
				return master.TrySend(fdpass.TypeHandoff, []fdpass.Handoff{{FD: fd}})
			})
			var c net.Conn
			if c, err = ln.Accept(); err == nil {
				open = append(open, c)
			}
		}
		if uint64(len(open)) < limit-100 || uint64(len(open)) > limit {
			t.Errorf("%d accepted at a limit of %d", len(open), limit)
		}
		for range 3 {
			if !temporary(err) || !errors.Is(err, unix.EMFILE) || draining(ln) {
				t.Errorf("Accept: %v, draining: %v; want EMFILE, which is temporary", err, draining(ln))
			}
			_, err = ln.Accept()
		}
		open[0].Close()
		write(t, accept(t, ln), "not lost")
		read(t, client, "not lost")
		for _, c := range open {
			c.Close()
		}
	}
}

// Descriptors that the kernel dropped because the limit was reached between two
// messages are not passed over in silence.
func TestFileLimitLoses(t *testing.T) {
	if !inChild(t) {
		return
	}
	fdtest.Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 700, Max: 1024}))
	master, ln := mailbox(t, worker.Config{})
	handOff(t, master, fdpass.TypeHandoff, 1)
	accept(t, ln) // no sign of a limit that is near
	client := handOff(t, master, fdpass.TypeHandoff, 1)[0]
	hogs := hogFiles(t)
	if _, err := ln.Accept(); !errors.Is(err, unix.EMFILE) {
		t.Errorf("Accept: %v; want EMFILE", err)
	}
	readEOF(t, client)
	hogs[0].Close()
}

// hogFiles opens all files that the process may open.
func hogFiles(t *testing.T) (hogs []*os.File) {
	for {
		hog, err := os.Open(os.DevNull)
		if errors.Is(err, unix.EMFILE) {
			return hogs
		}
		fdtest.Check(t, err)
		hogs = append(hogs, closing(t, hog))
	}
}

// The same program without a master is an ordinary server.
func TestAlone(t *testing.T) {
	fdtest.NoLeaks(t)
	ln, err := worker.Listen(anyPort)
	fdtest.Check(t, err)
	closing(t, ln)
	client, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	fdtest.Check(t, err)
	closing(t, client)
	c := accept(t, ln)
	write(t, client, "hello")
	read(t, c, "hello")
	if got, want := c.RemoteAddr().String(), client.LocalAddr().String(); got != want || c.Proxied() {
		t.Errorf("remote address %s, want %s", got, want)
	}
	if got, want := c.LocalAddr().String(), ln.Addr().String(); got != want {
		t.Errorf("local address %s, want %s", got, want)
	}
	theirs, _ := ordinary(t, anyPort)
	got, want := options(t, c), options(t, theirs)
	for _, o := range []option{noDelay, keepAlive, keepIdle, keepIntvl, keepCount} {
		if got[o] != want[o] {
			t.Errorf("option %v is %d, package net's %d", o, got[o], want[o])
		}
	}

	failed := make(chan error)
	go func() { _, err := ln.Accept(); failed <- err }()
	fdtest.Check(t, ln.Close())
	if err := fdtest.Receive(t, "Accept", failed); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want ErrClosed", err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Close: %v, want refused", err)
	}
	fdtest.Check(t, c.Close())
	idle(t, ln)
}

func TestAloneFileLimit(t *testing.T) {
	if !inChild(t) {
		return
	}
	ln, err := worker.Listen(anyPort)
	fdtest.Check(t, err)
	closing(t, ln)
	client, err := net.Dial("tcp", ln.Addr().String())
	fdtest.Check(t, err)
	closing(t, client)
	fdtest.Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: 1024}))
	hogs := hogFiles(t)
	_, err = ln.Accept()
	if !temporary(err) || !errors.Is(err, unix.EMFILE) || draining(ln) {
		t.Errorf("Accept: %v; want EMFILE, which is temporary", err)
	}
	hogs[0].Close()
	write(t, accept(t, ln), "not lost")
	read(t, client, "not lost")
}

func TestErrAlone(t *testing.T) {
	if _, err := worker.Listen(""); !errors.Is(err, worker.ErrAlone) {
		t.Error(err)
	}
	if _, err := worker.Listen("nowhere"); err == nil || errors.Is(err, worker.ErrAlone) {
		t.Error(err)
	}
}

// temporary tells whether net/http's Serve would try to accept again.
func temporary(err error) bool {
	var ne net.Error
	//lint:ignore SA1019 net/http asks for it (Server.Serve)
	return errors.As(err, &ne) && ne.Temporary()
}
