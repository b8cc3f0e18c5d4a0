package mailbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// TestDeliver: connections arrive in order, and the master keeps no copy of them.
func TestDeliver(t *testing.T) {
	m, w, r := open(t)
	if got := m.Env(os.Getenv); !slices.Equal(got, []string{"HANDFAST_FD=3", "HANDFAST_REPORT=1", "HANDFAST_MAX_CONNECTIONS_PER_SLOT=0", "HANDFAST_PING=0", "HANDFAST_HAND_BACK=0"}) || len(m.Files()) != 1 {
		t.Errorf("environment %v, %d files", got, len(m.Files()))
	}
	sent, clients := connect(t, 2*fdpass.MaxBatch+2)
	if n, err := reexectest.Passing(m.Deliver)(sent); n != len(sent) || err != nil {
		t.Fatalf("delivered %d of %d, error %v", n, len(sent), err)
	}
	for _, h := range sent {
		if isOpen(h.FD) {
			t.Fatalf("descriptor %d is open: the client would not see the worker close", h.FD)
		}
	}
	var got []fdpass.Handoff
	for len(got) < len(sent) {
		got = append(got, w.receive()...)
	}
	for i, h := range got {
		if h.Client != sent[i].Client {
			t.Errorf("connection %d is %v's, want %v's", i, h.Client, sent[i].Client)
		}
		answer(t, h, fmt.Sprintf("hello %d", i))
	}
	for i, client := range clients {
		if b, err := io.ReadAll(client); string(b) != fmt.Sprintf("hello %d", i) {
			t.Errorf("client %d read %q, error %v", i, b, err)
		}
	}
	m.Close()
	r.want(t, nil)
}

// TestReady: ready may be said again, and leaving is another thing.
func TestReady(t *testing.T) {
	m, w, _ := open(t)
	if fdtest.IsClosed(m.Ready()) {
		t.Error("ready before the worker said so")
	}
	w.say(fdpass.TypeReady)
	fdtest.Closed(t, "ready", m.Ready())
	w.say(fdpass.TypeReady)
	w.say(99) // of a later version
	m.Close() // has heard all
	if fdtest.IsClosed(m.Left()) {
		t.Errorf("left: %v", m.Err())
	}
}

// TestReport: what the worker says of its connections is known, also when it has left.
func TestReport(t *testing.T) {
	m, w, _ := open(t)
	if r, ok := m.Report(); ok {
		t.Errorf("before the first one: %+v", r)
	}
	for i, leaves := range []bool{false, true, false} {
		if leaves {
			w.say(fdpass.TypeLeave)
		}
		want := fdpass.Report{Open: uint64(i), Accepted: ^uint64(0) - uint64(i), Named: ^uint32(0) - uint32(i)}
		if err := w.TrySendReport(want); err != nil {
			t.Fatal(err)
		}
		fdtest.Eventually(t, "report", func() bool { r, ok := m.Report(); return ok && r == want })
	}
}

// TestDrain: what is queued comes before the end of file (man 2 shutdown). What
// comes later is refused, and stays the caller's.
func TestDrain(t *testing.T) {
	m, w, r := open(t)
	hs, _ := connect(t, 4)
	deliver(t, m, hs[:3])
	m.Drain()
	n, err := reexectest.Passing(m.Deliver)(hs[3:])
	if n != 0 || !errors.Is(err, fdpass.ErrClosed) || !isOpen(hs[3].FD) {
		t.Errorf("delivered %d, error %v, descriptor open %v; want 0, fdpass.ErrClosed, true", n, err, isOpen(hs[3].FD))
	}
	fdpass.CloseHandoffs(hs[3:])
	for range 3 {
		fdpass.CloseHandoffs(w.receive())
	}
	w.receiveEnd()
	w.say(fdpass.TypeReturn)
	w.Close()
	m.Close()
	r.want(t, nil)
	if fdtest.IsClosed(m.Left()) {
		t.Errorf("left: %v", m.Err())
	}
}

// TestFull: a worker that does not keep up is fdpass.ErrFull; what was not taken
// stays the caller's, what was taken is not lost.
func TestFull(t *testing.T) {
	m, _, r := open(t)
	one, _ := connect(t, 1)
	defer fdpass.CloseHandoffs(one)
	var hs []fdpass.Handoff
	for i := range 1000 {
		fd, err := unix.FcntlInt(uintptr(one[0].FD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		hs = append(hs, fdpass.Handoff{FD: fd, Flags: fdpass.Flags(i)})
		n, err := reexectest.Passing(m.Deliver)(hs[i:])
		if n == 0 && errors.Is(err, fdpass.ErrFull) && isOpen(fd) {
			unix.Close(fd)
			m.Close()
			r.want(t, hs[:i])
			return
		}
		if n != 1 || err != nil {
			t.Fatalf("connection %d: delivered %d, error %v, descriptor open %v", i, n, err, isOpen(fd))
		}
	}
	t.Error("a mailbox that nobody empties took 1000 messages")
}

// TestLeave: the worker gets no more, what it did not receive is readmitted, and it
// may give back what it did.
func TestLeave(t *testing.T) {
	m, w, r := open(t)
	hs, _ := connect(t, 4)
	deliver(t, m, hs)
	received := w.receive()
	w.say(fdpass.TypeReady)
	w.say(fdpass.TypeLeave)
	fdtest.Closed(t, "leaving", m.Left())
	if m.Err() != ErrLeft {
		t.Errorf("left with %v, want ErrLeft", m.Err())
	}
	r.want(t, hs[1:])
	w.receiveEnd()
	if n, err := reexectest.Passing(m.Deliver)(hs[:1]); n != 0 || !errors.Is(err, fdpass.ErrClosed) {
		t.Errorf("delivered %d, error %v; want fdpass.ErrClosed", n, err)
	}
	w.say(fdpass.TypeLeave) // said twice
	giveBack(w, received)
	r.want(t, append(hs[1:], hs[0]))
}

// TestDeath: what a worker did not receive before it died is readmitted in order,
// and works. Closing again, from several places, changes nothing.
func TestDeath(t *testing.T) {
	m, w, r := open(t)
	hs, clients := connect(t, 250)
	deliver(t, m, hs)
	for range 50 {
		fdpass.CloseHandoffs(w.receive())
	}
	w.Close()
	var closing sync.WaitGroup
	for range 3 {
		closing.Go(m.Close)
	}
	closing.Wait()
	r.want(t, hs[50:])
	for i, h := range r.all {
		answer(t, h, fmt.Sprintf("hello %d", i))
		if b, err := io.ReadAll(clients[50+i]); string(b) != fmt.Sprintf("hello %d", i) {
			t.Errorf("client %d read %q, error %v", 50+i, b, err)
		}
	}
	r.all = nil
}

// TestReturn: what a worker gives back is readmitted, also when that is the last
// thing it does, and is non-blocking whatever the worker made of it.
func TestReturn(t *testing.T) {
	m, w, r := open(t)
	hs, _ := connect(t, 3)
	hs[1].Flags = fdpass.FlagProxied
	deliver(t, m, hs)
	received := [][]fdpass.Handoff{w.receive(), w.receive(), w.receive()}
	w.say(fdpass.TypeLeave)
	for i := range hs {
		if err := unix.SetNonblock(received[i][0].FD, false); err != nil {
			t.Fatal(err)
		}
		giveBack(w, received[i])
		if i == 0 {
			r.want(t, hs[:1])
		}
	}
	w.Close()
	m.Close()
	r.want(t, hs)
	for i, h := range r.all {
		if flags, err := unix.FcntlInt(uintptr(h.FD), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 || h.Flags != hs[i].Flags {
			t.Errorf("connection %d: file flags %#x, error %v, flags %v; want non-blocking, %v", i, flags, err, h.Flags, hs[i].Flags)
		}
	}
}

// TestMalformed: a worker that breaks the protocol has left. It is not heard any
// more, and nothing else is harmed: what it did not receive is readmitted.
func TestMalformed(t *testing.T) {
	pipe := func(t *testing.T) int {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		unix.Close(fds[0])
		return fds[1]
	}
	udp := func(t *testing.T) int { return socket(t, unix.AF_INET, unix.SOCK_DGRAM) }
	local := func(t *testing.T) int { return socket(t, unix.AF_UNIX, unix.SOCK_STREAM) }
	listener := func(t *testing.T) int {
		// Not Go's own, which is a Multipath TCP socket, and refused as such.
		fd := socket(t, unix.AF_INET, unix.SOCK_STREAM)
		local := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
		if err := errors.Join(unix.Bind(fd, local), unix.Listen(fd, 1)); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	returns := func(make func(*testing.T) int) func(*testing.T, *worker) {
		return func(t *testing.T, w *worker) { giveBack(w, []fdpass.Handoff{{FD: make(t)}}) }
	}
	for name, misbehave := range map[string]func(*testing.T, *worker){
		"bytes": func(t *testing.T, w *worker) {
			if _, err := unix.Write(w.fd, []byte("GET / HTTP/1.1\r\n")); err != nil {
				t.Fatal(err)
			}
		},
		"handoff from a worker": func(t *testing.T, w *worker) {
			fd := socket(t, unix.AF_INET, unix.SOCK_STREAM)
			w.say(fdpass.TypeHandoff, fdpass.Handoff{FD: fd})
			unix.Close(fd)
		},
		"ready with a descriptor": func(t *testing.T, w *worker) {
			fd := pipe(t)
			w.say(fdpass.TypeReady, fdpass.Handoff{FD: fd})
			unix.Close(fd)
		},
		"return before leave": func(t *testing.T, w *worker) {
			giveBack(w, []fdpass.Handoff{{FD: socket(t, unix.AF_INET, unix.SOCK_STREAM)}})
		},
		"returned pipe":        returns(pipe),
		"returned UDP socket":  returns(udp),
		"returned Unix socket": returns(local),
		"returned listener":    returns(listener),
	} {
		t.Run(name, func(t *testing.T) {
			m, w, r := open(t)
			hs, _ := connect(t, 3)
			deliver(t, m, hs)
			received := w.receive()
			if strings.HasPrefix(name, "returned") { // only who drains may return
				m.Drain()
			}
			misbehave(t, w)
			fdtest.Closed(t, "leaving", m.Left())
			if !errors.Is(m.Err(), fdpass.ErrMalformed) {
				t.Errorf("left with %v, want fdpass.ErrMalformed", m.Err())
			}
			r.want(t, hs[1:])
			w.receiveEnd()
			if err := w.TrySend(fdpass.TypeReturn, received); err != fdpass.ErrClosed {
				t.Errorf("the worker is heard: %v, want fdpass.ErrClosed", err)
			}
			fdpass.CloseHandoffs(received)
			m.Close()
			r.want(t, hs[1:])
		})
	}
}

// TestMalformedReturn: connections that are returned together with something else
// are readmitted up to that, and no descriptor leaks.
func TestMalformedReturn(t *testing.T) {
	m, w, r := open(t)
	hs, _ := connect(t, 3)
	m.Drain()
	bad := hs[2:]
	unix.Dup3(1, bad[0].FD, unix.O_CLOEXEC)
	giveBack(w, append(hs[:2:2], bad[0], fdpass.Handoff{FD: socket(t, unix.AF_INET, unix.SOCK_STREAM)}))
	fdtest.Closed(t, "leaving", m.Left())
	r.want(t, hs[:2])
}

// TestUnknown: messages of types that later versions may have are ignored, but
// their descriptors closed.
func TestUnknown(t *testing.T) {
	m, w, r := open(t)
	fd := socket(t, unix.AF_INET, unix.SOCK_STREAM)
	w.say(99, fdpass.Handoff{FD: fd})
	unix.Close(fd)
	w.say(fdpass.TypeReady)
	fdtest.Closed(t, "ready", m.Ready())
	r.want(t, nil)
}

// TestNeverStarted: a mailbox without a worker can be closed.
func TestNeverStarted(t *testing.T) {
	fdtest.NoLeaks(t)
	r := new(returned)
	m, err := Open(nil, Requests{}, r.readmit)
	if err != nil {
		t.Fatal(err)
	}
	hs, _ := connect(t, 2)
	deliver(t, m, hs)
	m.Close()
	r.want(t, hs)
	fdpass.CloseHandoffs(r.all)
	m.Drain()
}

// TestShutdown: a worker that shuts its end down (as many libraries do to close a
// socket, man 2 shutdown) or sends an empty message has left.
func TestShutdown(t *testing.T) {
	for name, act := range map[string]func(fd int) error{
		"SHUT_WR":       func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) },
		"SHUT_RDWR":     func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) },
		"empty message": func(fd int) error { return unix.Send(fd, nil, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			m, w, r := open(t)
			hs, _ := connect(t, 2)
			deliver(t, m, hs)
			if err := act(w.fd); err != nil {
				t.Fatal(err)
			}
			fdtest.Closed(t, "leaving", m.Left())
			if m.Err() != ErrShutDown {
				t.Errorf("left with %v, want ErrShutDown", m.Err())
			}
			r.want(t, hs)
		})
	}
}

// TestRescue: what a worker that drains leaves lying, because it is stalled, is taken
// back while it lives.
func TestRescue(t *testing.T) {
	m, w, r := open(t)
	hs, _ := connect(t, 2)
	deliver(t, m, hs)
	m.Drain()
	r.want(t, hs)
	w.receiveEnd()
}
