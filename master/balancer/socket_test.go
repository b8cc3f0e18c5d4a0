package balancer

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/unixsocket"
)

// TestUnixSocket: what comes back from a worker is trusted as a Unix socket's peer only if it came to a Unix socket of ours, whatever
// the worker says; and what did not is not taken as a connection that was handed back.
func TestUnixSocket(t *testing.T) {
	fdtest.NoLeaks(t)
	listen := func(name string) *unixsocket.Listener {
		ln, err := unixsocket.Listen(filepath.Join(t.TempDir(), name), unixsocket.Options{Mode: 0o600, Backlog: 8})
		fdtest.Check(t, err)
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	accept := func(ln *unixsocket.Listener) (fd int) {
		client, err := net.Dial("unix", ln.Addr().String())
		fdtest.Check(t, err)
		t.Cleanup(func() { client.Close() })
		conn, err := ln.Accept()
		fdtest.Check(t, err)
		defer conn.Close()
		fd, err = sock.Duplicate(conn.(*net.UnixConn))
		fdtest.Check(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	ours, other := listen("ours"), listen("other")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	listener, err := sock.Duplicate(ours.UnixListener)
	fdtest.Check(t, err)
	defer unix.Close(listener)

	b, err := New(DefaultConfig(), NewTable(1))
	fdtest.Check(t, err)
	fdtest.Check(t, sock.Control(ours.UnixListener, func(fd int) error { b.addName(sock.Name(fd)); return nil }))
	said := netip.MustParseAddrPort("127.0.0.1:1") // a trusted proxy's, by the worker's own word
	for name, v := range map[string]struct {
		fd    int
		taken bool
	}{
		"ours":     {accept(ours), true},
		"other":    {accept(other), false},
		"pair":     {pair[0], false},
		"listener": {listener, false},
	} {
		for _, flags := range []fdpass.Flags{0, fdpass.FlagUnix, fdpass.FlagUnix | fdpass.FlagProxied} {
			h := fdpass.Handoff{FD: v.fd, Client: said, Flags: flags}
			err := b.checkReturned(&h)
			if v.taken != (err == nil) || err != nil && !errors.Is(err, ErrForeign) {
				t.Errorf("%s: %v", name, err)
			}
			if v.taken && (h.Source() != fdpass.UnixPeer || h.Client.IsValid() || h.Flags != fdpass.FlagUnix) {
				t.Errorf("%s: %+v", name, h)
			}
		}
	}
	for name, v := range map[string]struct {
		fd   int
		want netip.Addr
	}{"ours": {accept(ours), fdpass.UnixPeer}, "other": {accept(other), said.Addr()}} {
		h := fdpass.Handoff{FD: v.fd, Flags: fdpass.FlagUnix}
		peer, _ := sock.Peer(h.FD)
		if got := b.believe(h, peer, b.isOurSocket(h.FD)); v.want == fdpass.UnixPeer != (got.Source() == fdpass.UnixPeer) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestUnixListener: the name goes when accepting ends, and who was in the queue by then is served.
func TestUnixListener(t *testing.T) {
	fdtest.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := unixsocket.Listen(path, unixsocket.Options{Mode: 0o600, Backlog: 8})
	fdtest.Check(t, err)
	b, err := New(DefaultConfig(), NewTable(1))
	fdtest.Check(t, err)
	client, err := net.Dial("unix", path) // before anybody accepts
	fdtest.Check(t, err)
	defer client.Close()
	a, err := newAcceptor(b, ln)
	fdtest.Check(t, err)
	a.stopConnecting()
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		t.Error("somebody connects who comes too late")
	}
	reexec.Lock.RLock()
	var taken bool
	fdtest.Check(t, a.raw.Control(func(fd uintptr) { taken = a.take(fd) }))
	reexec.Lock.RUnlock()
	if !taken || len(a.batch) != 1 || a.batch[0].Source() != fdpass.UnixPeer || a.batch[0].peer() != "unix" {
		t.Fatalf("%+v", a.batch)
	}
	fdpass.CloseConnections(a.batch[0].FD)
	fdtest.Check(t, a.file.Close())
}
