package nodeipc

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec"
)

// TestLingeringFromWorker: the master closes what lingers without waiting, whether a worker has sent it or
// has been sent it: it acknowledges what it has closed itself, or disconnects without.
//
// Row A5.
func TestLingeringFromWorker(t *testing.T) {
	_, w, _ := openLink(t, ReadyAuto)
	_, fd := fdtest.Connection(t)
	fdtest.Linger(t, fd)
	// While this lock is held the master reads nothing, so the worker's copy is closed first.
	reexec.Lock.Lock()
	err := unix.Sendmsg(w.fd, []byte(`{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{}}`+"\n"), unix.UnixRights(fd), nil, 0)
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 6000})
	unix.Close(fd)
	reexec.Lock.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if m := w.hear(); m.Cmd != cmdAck {
		t.Errorf("heard %+v", m)
	}
}

// TestLingeringConnection: the same for connections that a worker was handed.
//
// Row A5.
func TestLingeringConnection(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	_, first := fdtest.Connection(t)
	_, second := fdtest.Connection(t)
	hs := []fdpass.Handoff{{FD: first}, {FD: second}}
	deliver(t, l, hs)
	for range hs {
		m := w.hear()
		fdtest.Linger(t, m.fd)
		unix.Close(m.fd)
	}
	w.say(`{"cmd":"NODE_HANDLE_ACK"}` + "\n")
	fdtest.Eventually(t, "closing", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.flight) == 1
	})
	w.Close()
	r.want(t, hs[1:])
	// A connection that comes back still lingers; its owner closes it as all such.
}
