package nodeipc

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// linger makes the last close of a TCP connection wait for 6,000 s: it has data that its peer does not take.
func linger(t testing.TB, fd int) {
	t.Helper()
	unix.SetNonblock(fd, true)
	for data := make([]byte, 1<<20); ; {
		if _, err := unix.Write(fd, data); err != nil {
			break
		}
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 6000}); err != nil {
		t.Fatal(err)
	}
}

// dialled returns a TCP connection that the caller owns, until the end of the test with a peer.
func dialled(t testing.TB) int {
	t.Helper()
	ln := listen(t)
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err := ln.(*net.TCPListener).AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestLingeringFromWorker: the master closes what lingers without waiting, whether a worker has sent it or
// has been sent it: it acknowledges what it has closed itself, or disconnects without.
//
// Row A5.
func TestLingeringFromWorker(t *testing.T) {
	_, w, _ := openLink(t, ReadyAuto)
	fd := dialled(t)
	linger(t, fd)
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
	hs := []fdpass.Handoff{{FD: dialled(t)}, {FD: dialled(t)}}
	deliver(t, l, hs)
	for range hs {
		m := w.hear()
		linger(t, m.fd)
		unix.Close(m.fd)
	}
	w.say(`{"cmd":"NODE_HANDLE_ACK"}` + "\n")
	eventually(t, "closing", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.flight) == 1
	})
	w.Close()
	r.want(t, hs[1:])
	// What comes back still lingers; who owns it closes it as all such.
}
