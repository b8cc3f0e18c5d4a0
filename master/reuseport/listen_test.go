package reuseport

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
)

// TestListenFor: slots' clients come to the members that were said, from the first one on.
func TestListenFor(t *testing.T) {
	fdtest.NoLeaks(t)
	g, err := ListenFor(t.Context(), "127.0.0.1:0", hash.DefaultConfig(), []int{3, 1}, 4, nil)
	fdtest.Check(t, err)
	t.Cleanup(func() { g.Close() })
	acceptAll(t, g, 0, 4, nil)
	for i := range 40 {
		got, err := slotOf(t.Context(), loopback(i), g.Addr().String())
		if want := []int{3, 1}[g.config.Key(loopback(i)).Slot(2)]; err != nil || got != want {
			t.Fatalf("%s came to member %d (%v), want %d", loopback(i), got, err, want)
		}
	}
	for members, at := range map[int][]int{0: {0}, maxMembers + 1: {0}, 2: nil} {
		if g, err := ListenFor(t.Context(), "127.0.0.1:0", hash.DefaultConfig(), at, members, nil); err == nil {
			g.Close()
			t.Errorf("slots at %v of %d members: no error", at, members)
		}
	}
	if g, err := ListenFor(t.Context(), "127.0.0.1:0", hash.Config{IPv4Prefix: 33}, []int{0}, 1, nil); err == nil {
		g.Close()
		t.Error("a prefix of 33 bits: no error")
	}
}

// TestListenFree: an address that no machine has (RFC 5737), for all members and those that come later, and after Clean.
func TestListenFree(t *testing.T) {
	fdtest.NoLeaks(t)
	const address = "192.0.2.1:0"
	if g, err := Listen(t.Context(), address, hash.DefaultConfig(), 2); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		if err == nil {
			g.Close()
		}
		t.Skipf("this machine has all addresses: %v", err)
	}
	g, err := ListenWith(t.Context(), address, hash.DefaultConfig(), 2, Options{Prepare: fdpass.SetFreebind})
	fdtest.Check(t, err)
	t.Cleanup(func() { g.Close() })
	fdtest.Check(t, g.Clean(1, false))
	fdtest.Check(t, g.Grow(3))
	if found, err := g.Repair(); err != nil || found.Shut != nil {
		t.Errorf("found %+v (%v)", found, err)
	}
}

// TestOnlyIPv4: the group for IPv4 alone takes all clients of IPv4 of the one for both families, whose members get those
// of IPv6 and the connections that wait there already.
func TestOnlyIPv4(t *testing.T) {
	fdtest.NoLeaks(t)
	both := mustListen(t, ":0", hash.DefaultConfig(), 2)
	fdtest.Check(t, both.Steer([]int{1, 0}))
	port := strconv.Itoa(both.Addr().Port)
	before, err := dial(t.Context(), loopback(1), net.JoinHostPort("127.0.0.1", port))
	fdtest.Check(t, err)
	t.Cleanup(func() { before.Close() })

	four, err := both.OnlyIPv4()
	fdtest.Check(t, err)
	if four == nil {
		t.Skip("no IPv6 on this machine")
	}
	t.Cleanup(func() { four.Close() })
	if four.Members() != 2 || four.Addr().String() != "0.0.0.0:"+port {
		t.Errorf("%d members at %v", four.Members(), four.Addr())
	}
	waiting := func(g *Group) (n int) {
		for i := range g.Members() {
			w, _, err := g.Queue(i)
			fdtest.Check(t, err)
			n += w
		}
		return n
	}
	acceptAll(t, four, 0, 2, nil)
	for i := range 20 {
		got, err := slotOf(t.Context(), loopback(i), net.JoinHostPort("127.0.0.1", port))
		if want := 1 - four.config.Key(loopback(i)).Slot(2); err != nil || got != want {
			t.Fatalf("%s came to member %d (%v), want %d", loopback(i), got, err, want)
		}
	}
	if n := waiting(both); n != 1 {
		t.Errorf("%d wait for both families, want the one that had come before", n)
	}
	acceptAll(t, both, 0, 2, nil)
	if _, err := slotOf(t.Context(), netip.IPv6Loopback(), net.JoinHostPort("::1", port)); err != nil {
		t.Errorf("IPv6: %v", err)
	}
	for _, g := range []*Group{four, mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 1)} {
		if again, err := g.OnlyIPv4(); again != nil || err != nil {
			t.Errorf("of %v: %v, %v", g.Addr(), again, err)
		}
	}
}

// TestAfterStopHandshakes: a group that has stopped is only closed. Nothing brings clients back.
func TestAfterStopHandshakes(t *testing.T) {
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
	fdtest.Check(t, g.StopHandshakes())
	if err := g.Grow(2); err != nil {
		t.Errorf("as many as there are: %v", err)
	}
	if err := g.Grow(3); !errors.Is(err, ErrStopped) || g.Members() != 2 {
		t.Errorf("%d members, %v", g.Members(), err)
	}
	fdtest.Check(t, control(g.Listener(0), func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) }))
	if found, err := g.Repair(); err != nil || found.Shut != nil {
		t.Errorf("repaired %+v (%v)", found, err)
	}
	if _, _, err := g.Queue(0); !errors.Is(err, ErrNotListening) {
		t.Errorf("it listens again: %v", err)
	}
	fdtest.Check(t, g.Steer([]int{1, 0}))
	if at := g.memberOf; at[0] != 0 {
		t.Errorf("steered to %v", at)
	}
}

// TestChown: listeners belong to a user, as the kernel sees them.
func TestChown(t *testing.T) {
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
	uid := os.Getuid()
	if uid == 0 {
		uid = 65534
	}
	fdtest.Check(t, g.Chown(uid, -1))
	for _, m := range g.all() {
		var stat unix.Stat_t
		fdtest.Check(t, control(m.file, func(fd int) error { return unix.Fstat(fd, &stat) }))
		if int(stat.Uid) != uid {
			t.Errorf("it belongs to %d, want %d", stat.Uid, uid)
		}
	}
}
