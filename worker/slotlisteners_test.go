package worker_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

// withListeners returns a master's end, a worker that was offered n listeners, and these.
func withListeners(t testing.TB, n int) (*fdpass.Conn, *worker.Listener, []*net.TCPListener) {
	t.Helper()
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	closing(t, master)
	var listeners []*net.TCPListener
	var offer []fdpass.Handoff
	for range n {
		ln, err := net.Listen("tcp", anyPort)
		fdtest.Check(t, err)
		listeners = append(listeners, closing(t, ln.(*net.TCPListener)))
		offer = append(offer, fdpass.Handoff{FD: fdtest.Duplicate(t, ln.(*net.TCPListener)), Client: addrPort(ln.Addr())})
	}
	defer fdpass.CloseHandoffs(offer)
	fdtest.Check(t, master.TrySend(fdpass.TypeListen, offer))
	ln, err := worker.Config{Mailbox: file}.Listen()
	fdtest.Check(t, err)
	return master, closing(t, ln), listeners
}

func dialTo(t testing.TB, ln net.Listener) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", ln.Addr().String())
	fdtest.Check(t, err)
	return closing(t, conn.(*net.TCPConn))
}

// serves fails unless the next connection is this client's.
func serves(t testing.TB, ln *worker.Listener, client *net.TCPConn) *worker.Conn {
	t.Helper()
	c := accept(t, ln)
	if got, want := c.RemoteAddr().String(), client.LocalAddr().String(); got != want {
		t.Errorf("accepted %s, want %s", got, want)
	}
	if got, want := c.LocalAddr().String(), client.RemoteAddr().String(); got != want {
		t.Errorf("accepted at %s, want %s", got, want)
	}
	return c
}

// TestSlotListeners: a worker accepts from the slot's listeners, says so, and also takes what the
// master hands off.
func TestSlotListeners(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln, listeners := withListeners(t, 2)
	if got, want := ln.Addr().String(), listeners[0].Addr().String(); got != want {
		t.Errorf("listens on %s, want %s", got, want)
	}
	fdtest.Check(t, ln.Ready())
	if m := next(t, master); m.Type != fdpass.TypeListen || len(m.Handoffs) != 0 {
		t.Errorf("says %v with %d records", m.Type, len(m.Handoffs))
	}
	for i := range 4 {
		client := dialTo(t, listeners[i%2])
		c := serves(t, ln, client)
		write(t, client, "hello")
		read(t, c, "hello")
		if c.Proxied() {
			t.Error("proxied")
		}
	}
	client := handOff(t, master, fdpass.TypeHandoff, 1)[0]
	if c := accept(t, ln); c.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("handed off: %s", c.RemoteAddr())
	}
}

// TestSlotListenersDrain: at end of file the worker accepts no more. Its listeners are closed, not shut down:
// who comes then is another's.
func TestSlotListenersDrain(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln, listeners := withListeners(t, 1)
	serves(t, ln, func() *net.TCPConn { fdtest.Check(t, ln.Ready()); return dialTo(t, listeners[0]) }())
	fdtest.Check(t, master.CloseWrite())
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	fdtest.Receive(t, "draining", ln.Draining())
	client := dialTo(t, listeners[0])
	listeners[0].SetDeadline(time.Now().Add(bound))
	c, err := listeners[0].Accept()
	fdtest.Check(t, err)
	defer c.Close()
	if got, want := c.RemoteAddr().String(), client.LocalAddr().String(); got != want {
		t.Errorf("accepted %s, want %s", got, want)
	}
}

// TestSlotListenersClose: a worker that leaves gives back what it has taken from the backlog and
// nobody has accepted.
func TestSlotListenersClose(t *testing.T) {
	fdtest.NoLeaks(t)
	master, ln, listeners := withListeners(t, 2)
	client := dialTo(t, listeners[1])
	fdtest.Eventually(t, "in the backlog", func() bool { return backlog(t, listeners[1]) == 1 })
	fdtest.Check(t, ln.Ready())
	fdtest.Eventually(t, "taken from the backlog", func() bool { return backlog(t, listeners[1]) == 0 })
	fdtest.Check(t, ln.Close())
	for _, want := range []fdpass.Type{fdpass.TypeListen, fdpass.TypeLeave, fdpass.TypeReturn} {
		m := next(t, master)
		if m.Type != want {
			t.Fatalf("says %v, want %v", m.Type, want)
		}
		if want == fdpass.TypeReturn && (len(m.Handoffs) != 1 || m.Handoffs[0].Client != addrPort(client.LocalAddr())) {
			t.Errorf("gives back %v", m.Handoffs)
		}
		fdpass.CloseHandoffs(m.Handoffs)
	}
}

// backlog returns how many connections wait to be accepted (TCP_INFO of a listener).
func backlog(t testing.TB, ln *net.TCPListener) (n uint32) {
	fdtest.Control(t, ln, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = info.Unacked
		}
		return err
	})
	return n
}

// TestSlotListenersUnused: a worker that is never ready accepts nothing.
func TestSlotListenersUnused(t *testing.T) {
	fdtest.NoLeaks(t)
	_, ln, listeners := withListeners(t, 1)
	dialTo(t, listeners[0])
	fdtest.Eventually(t, "in the backlog", func() bool { return backlog(t, listeners[0]) == 1 })
	fdtest.Check(t, ln.Close())
	if n := backlog(t, listeners[0]); n != 1 {
		t.Errorf("%d connections wait", n)
	}
}
