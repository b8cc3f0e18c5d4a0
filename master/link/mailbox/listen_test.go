package mailbox

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// offer makes a listener, and how it is offered. The test goes on owning both.
func offer(t *testing.T) (*net.TCPListener, []fdpass.Handoff) {
	t.Helper()
	fdtest.NoLeaks(t)
	ln := fdtest.Listen(t)
	fd := fdtest.Duplicate(t, ln)
	t.Cleanup(func() { unix.Close(fd) })
	return ln, []fdpass.Handoff{{FD: fd, Client: ln.Addr().(*net.TCPAddr).AddrPort()}}
}

// TestListen: the listeners are the first thing that a worker finds. It answers that it
// accepts from them, and can be handed connections all the same.
func TestListen(t *testing.T) {
	ln, offered := offer(t)
	m, w, r := openWith(t, offered, Requests{})
	var got fdpass.Message
	if w.Next() != fdpass.TypeListen {
		t.Error("the first message is another")
	}
	if err := w.Receive(&got); err != nil || got.Type != fdpass.TypeListen || len(got.Handoffs) != 1 || got.Handoffs[0].Client != offered[0].Client {
		t.Fatalf("%+v, %v", got, err)
	}
	defer fdpass.CloseHandoffs(got.Handoffs)
	w.say(fdpass.TypeListen)
	fdtest.Closed(t, "ready", m.Ready())
	if !m.Accepts(offered[0].Client) {
		t.Error("it does not listen")
	}
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	fdtest.Eventually(t, "accepts from it", func() bool {
		fd, _, err := unix.Accept4(got.Handoffs[0].FD, unix.SOCK_CLOEXEC)
		if err == nil {
			unix.Close(fd)
		}
		return err == nil
	})
	hs, _ := connect(t, 1)
	deliver(t, m, hs)
	fdpass.CloseHandoffs(w.receive())
	r.want(t, nil)
}

// TestListenNot: a worker that says ready instead is served by the master.
func TestListenNot(t *testing.T) {
	_, offered := offer(t)
	m, w, _ := openWith(t, offered, Requests{})
	w.say(fdpass.TypeReady)
	fdtest.Closed(t, "ready", m.Ready())
	w.say(fdpass.TypeListen) // too late to matter
	if m.Accepts(offered[0].Client) {
		t.Error("it listens")
	}
}

// TestListenUnasked: a worker that was offered none cannot accept from any.
func TestListenUnasked(t *testing.T) {
	m, w, _ := open(t)
	w.say(fdpass.TypeListen)
	fdtest.Closed(t, "left", m.Left())
	if !errors.Is(m.Err(), fdpass.ErrMalformed) || fdtest.IsClosed(m.Ready()) {
		t.Errorf("ready %v, %v", fdtest.IsClosed(m.Ready()), m.Err())
	}
}

// TestListenUnread: listeners that a worker never took out of its mailbox are no connections
// to be placed again.
func TestListenUnread(t *testing.T) {
	_, offered := offer(t)
	m, _, r := openWith(t, offered, Requests{})
	hs, _ := connect(t, 1)
	deliver(t, m, hs)
	m.Close()
	r.want(t, hs)
}
