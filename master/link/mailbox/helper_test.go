package mailbox

import (
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// timeout bounds what should be immediate.
const timeout = fdtest.Patience

// connect makes n connections. The caller owns the descriptors of the servers'
// ends; the clients' ends are closed when the test ends.
func connect(t testing.TB, n int) (hs []fdpass.Handoff, clients []net.Conn) {
	t.Helper()
	for range n {
		client, fd := fdtest.Connection(t)
		addr := client.LocalAddr().(*net.TCPAddr).AddrPort()
		hs = append(hs, fdpass.Handoff{FD: fd, Client: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())})
		clients = append(clients, client)
	}
	return hs, clients
}

// isOpen tells whether a number is that of an open descriptor.
func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// returned collects what is readmitted.
type returned struct {
	mu  sync.Mutex
	all []fdpass.Handoff
}

func (r *returned) readmit(hs []fdpass.Handoff) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, hs...)
}

func (r *returned) clients() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return clientsOf(r.all)
}

func clientsOf(hs []fdpass.Handoff) []netip.AddrPort {
	clients := []netip.AddrPort{}
	for _, h := range hs {
		clients = append(clients, h.Client)
	}
	return clients
}

// want waits until exactly these connections were readmitted, in this order.
func (r *returned) want(t testing.TB, hs []fdpass.Handoff) {
	t.Helper()
	fdtest.Eventually(t, "readmission", func() bool { return len(r.clients()) >= len(hs) })
	if got, want := r.clients(), clientsOf(hs); !slices.Equal(got, want) {
		t.Errorf("readmitted: %v\nwant: %v", got, want)
	}
}

// open makes a mailbox for the test, and the worker that has inherited its end.
// Both are closed when the test ends.
func open(t testing.TB) (*Mailbox, *worker, *returned) {
	t.Helper()
	fdtest.NoLeaks(t)
	return openWith(t, nil, Requests{})
}

// openWith is open for a worker that is offered listeners, or asked for more, for tests that check for leaks.
func openWith(t testing.TB, listeners []fdpass.Handoff, requests Requests) (*Mailbox, *worker, *returned) {
	t.Helper()
	r := new(returned)
	m, err := Open(listeners, requests, r.readmit)
	if err != nil {
		t.Fatal(err)
	}
	fd := fdtest.Duplicate(t, m.Files()[0])
	// As worker.Listen does, to wait in the poller. It concerns the master, too:
	// the flag is not the descriptor's but the socket's.
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	conn, err := fdpass.NewConn(os.NewFile(uintptr(fd), "worker's mailbox"))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReceiveDeadline(time.Now().Add(timeout))
	t.Cleanup(func() {
		conn.Close()
		m.Close()
		fdpass.CloseHandoffs(r.all)
	})
	return m, &worker{Conn: conn, fd: fd, t: t}, r
}

// worker is the other side.
type worker struct {
	*fdpass.Conn
	fd int
	t  testing.TB
}

// receive returns the next message's connections, which the caller owns.
func (w *worker) receive() []fdpass.Handoff {
	w.t.Helper()
	var m fdpass.Message
	if err := w.Receive(&m); err != nil || m.Type != fdpass.TypeHandoff {
		w.t.Fatalf("worker received %+v, error %v", m, err)
	}
	return m.Handoffs
}

// receiveEnd fails the test unless the mailbox has ended.
func (w *worker) receiveEnd() {
	w.t.Helper()
	var m fdpass.Message
	if err := w.Receive(&m); err != io.EOF {
		w.t.Fatalf("worker received %+v, error %v; want io.EOF", m, err)
	}
}

func (w *worker) say(typ fdpass.Type, hs ...fdpass.Handoff) {
	w.t.Helper()
	if err := w.TrySend(typ, hs); err != nil {
		w.t.Fatalf("worker says %v: %v", typ, err)
	}
}

// deliver fails the test unless the mailbox takes all, a message for each.
func deliver(t testing.TB, m *Mailbox, hs []fdpass.Handoff) {
	t.Helper()
	for i := range hs {
		if n, err := reexectest.Passing(m.Deliver)(hs[i : i+1]); n != 1 || err != nil {
			t.Fatalf("connection %d: delivered %d, error %v", i, n, err)
		}
	}
}

// giveBack returns connections in one message and closes the worker's copies.
func giveBack(w *worker, hs []fdpass.Handoff) {
	w.t.Helper()
	w.say(fdpass.TypeReturn, hs...)
	fdpass.CloseHandoffs(hs)
}

// socket opens a socket that the caller owns.
func socket(t testing.TB, domain, typ int) int {
	t.Helper()
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// answer writes to a connection and closes it.
func answer(t testing.TB, h fdpass.Handoff, text string) {
	t.Helper()
	defer unix.Close(h.FD)
	if _, err := unix.Write(h.FD, []byte(text)); err != nil {
		t.Error(err)
	}
}
