package acceptinject

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/seccomp"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// bare makes a link that is answered by nobody, with so many decoys. What it gives back is in returned.
func bare(t *testing.T, decoys int) (l *Link, returned *[]fdpass.Handoff) {
	t.Helper()
	fdtest.NoLeaks(t)
	returned = new([]fdpass.Handoff)
	l, err := Open(Config{
		Addresses: []netip.AddrPort{netip.MustParseAddrPort("[::ffff:127.0.0.1]:80"), netip.MustParseAddrPort("127.0.0.2:80")},
		Readmit:   func(conns []fdpass.Handoff) { *returned = append(*returned, conns...) },
	})
	fdtest.Check(t, err)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK) // for notifications that never come
	fdtest.Check(t, err)
	l.Notifs, err = seccomp.NewNotifications(os.NewFile(uintptr(fd), "notifications"))
	fdtest.Check(t, err)
	for range decoys {
		d, err := openDecoy(unix.AF_INET)
		fdtest.Check(t, err)
		l.decoys = append(l.decoys, d)
	}
	t.Cleanup(func() {
		l.Close()
		for _, conn := range *returned {
			if conn.FD >= 0 {
				unix.Close(conn.FD)
			}
		}
	})
	return l, returned
}

// handoffs are connections that are none, the number of each as its client's port.
func handoffs(n int) (all []fdpass.Handoff) {
	for i := range n {
		all = append(all, fdpass.Handoff{FD: -1, Client: netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(i))})
	}
	return all
}

// TestDeliver: up to a limit, with a wake-up at a decoy for each connection, at each decoy one; none is taken before there is a
// decoy, and none after the end, when all come back in their order.
func TestDeliver(t *testing.T) {
	l, _ := bare(t, 0)
	if n, err := l.Deliver(handoffs(1)); n != 0 || err != fdpass.ErrClosed || l.Served() {
		t.Errorf("without a decoy: %d, %v", n, err)
	}
	l, returned := bare(t, 2)
	all := handoffs(maxQueue + 2)
	for i, want := range []int{1, 2, 2} {
		if n, err := l.Deliver(all[i : i+1]); n != 1 || err != nil || !l.Served() {
			t.Errorf("%d, %v", n, err)
		}
		if n := l.woken(); n != want {
			t.Errorf("%d wake-ups, want %d", n, want)
		}
	}
	if n, err := l.Deliver(all[3:10]); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := l.Deliver(all[10:]); n != maxQueue-10 || err != fdpass.ErrFull {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := l.Deliver(all); n != 0 || err != fdpass.ErrFull {
		t.Errorf("when it is full: %d, %v", n, err)
	}
	l.stop()
	if !slices.Equal(*returned, all[:maxQueue]) {
		t.Errorf("%d came back, or others", len(*returned))
	}
	if n, err := l.Deliver(all); n != 0 || err != fdpass.ErrClosed {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

// backlog waits until so many wake-ups have arrived at a decoy.
func backlog(t *testing.T, d *decoy, n int) {
	t.Helper()
	fdtest.Eventually(t, "wake-ups", func() bool {
		info, err := unix.GetsockoptTCPInfo(d.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err == nil && int(info.Unacked) == n // the backlog's length (tcpi_unacked)
	})
}

// TestWakeups: where accept waits they follow the queue down, first where a connection was accepted. They go on to another
// decoy when one is closed. Calls that wait need none.
func TestWakeups(t *testing.T) {
	l, _ := bare(t, 2)
	l.Deliver(handoffs(4))
	first, second := l.decoys[0], l.decoys[1]
	backlog(t, first, 1)
	backlog(t, second, 1)
	for i, want := range [][2]bool{{true, true}, {true, true}, {false, true}, {false, false}} {
		if conn, _ := l.pop(first); int(conn.Client.Port()) != i {
			t.Errorf("connection %d came at %d", conn.Client.Port(), i)
		}
		if got := [2]bool{first.woken, second.woken}; got != want {
			t.Errorf("after %d: %v, want %v", i, got, want)
		}
	}
	backlog(t, first, 0)
	backlog(t, second, 0)
	l.lastWoken = 0
	l.Deliver(handoffs(1))
	if last := l.remove(second); last || !first.woken {
		t.Errorf("last %v, woken %v", last, first.woken)
	}
	l.pop(first)
	l.waiting = make([]acceptCall, 2)
	for i, want := range []int{0, 0, 1} {
		l.Deliver(handoffs(1))
		if n := l.woken(); n != want {
			t.Errorf("%d wake-ups for %d connections and 2 calls", n, i+1)
		}
	}
	l.waiting = nil
	if last := l.remove(first); !last || l.woken() != 0 {
		t.Errorf("last %v, %d wake-ups", last, l.woken())
	}
}

// TestWakeupsStay: where accept does not wait they stay until a call finds nothing, once a call has that nothing was announced to.
func TestWakeupsStay(t *testing.T) {
	l, _ := bare(t, 1)
	d := l.decoys[0]
	unix.SetNonblock(d.fd, true)
	call := acceptCall{decoy: d}
	for i := range 4 {
		l.Deliver(handoffs(1))
		backlog(t, d, 1)
		if i < 2 {
			l.pop(d)
			backlog(t, d, 0)
			if i == 1 {
				l.wait(&call)
			}
			continue
		}
		l.Deliver(handoffs(1))
		backlog(t, d, 1)
		l.pop(d)
		l.pop(d)
		l.Deliver(handoffs(1))
		l.pop(d)
		backlog(t, d, 1)
		if errno := l.wait(&call); errno != unix.EAGAIN || d.woken {
			t.Errorf("%v, woken %v", errno, d.woken)
		}
		backlog(t, d, 0)
	}
}

// TestWakeAnew: a wake-up that nobody answers is followed by others, ever more rarely: it may have been taken, or its
// thread may be busy. When somebody accepts that begins anew.
func TestWakeAnew(t *testing.T) {
	l, _ := bare(t, 2)
	unix.SetNonblock(l.decoys[0].fd, true)
	l.Deliver(handoffs(1))
	first, second := l.decoys[1], l.decoys[0]
	backlog(t, first, 1)
	for i, want := range []int{2, 3, 3, 4, 4, 4, 4, 5} {
		l.runTick()
		if l.idleTicks != i+1 {
			t.Errorf("%d ticks without a call, want %d", l.idleTicks, i+1)
		}
		backlog(t, first, want)
		backlog(t, second, want-1)
	}
	l.accepted = true
	if l.runTick(); l.idleTicks != 0 || l.accepted {
		t.Errorf("%d ticks without a call, want none", l.idleTicks)
	}
	backlog(t, first, 5)
	l.stop()
	l.wait(&acceptCall{decoy: second})
	backlog(t, second, 0)
}

// TestHousekeeping: there are ticks only while connections or calls wait, or have done so since the last one.
func TestHousekeeping(t *testing.T) {
	l, _ := bare(t, 1)
	l.Go(l.housekeep)
	ticking := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.ticking
	}
	idle := func() bool { return !ticking() }
	l.keepHouse()
	fdtest.Eventually(t, "no ticks", idle)
	l.Deliver(handoffs(1))
	fdtest.Eventually(t, "ticks", ticking)
	l.mu.Lock()
	l.pop(l.decoys[0])
	l.mu.Unlock()
	fdtest.Eventually(t, "no more ticks", idle)
}

// TestRemoveClosed: decoys that no process has open are forgotten, and with the last one the link has left. That
// returns what was queued.
func TestRemoveClosed(t *testing.T) {
	l, returned := bare(t, 2)
	l.Deliver(handoffs(1))
	l.AddRoot(1 << 30) // a process that is not there
	l.removeClosed()
	if l.Served() || !errors.Is(l.Err(), errShut) || len(*returned) != 1 {
		t.Errorf("served %v, left for %v, returned %d", l.Served(), l.Err(), len(*returned))
	}
}

// TestPeerName: what accept says of a peer, as a socket of either family does (man 7 ip, man 7 ipv6).
func TestPeerName(t *testing.T) {
	client, fd := fdtest.Connection(t)
	defer unix.Close(fd)
	port := netip.MustParseAddrPort(client.LocalAddr().String()).Port()
	for _, tt := range []struct {
		family uint16
		size   int
		ip     int // where the address is
		want   netip.Addr
	}{
		{unix.AF_INET, unix.SizeofSockaddrInet4, 4, netip.MustParseAddr("127.0.0.1")},
		{unix.AF_INET6, unix.SizeofSockaddrInet6, 8, netip.MustParseAddr("::ffff:127.0.0.1")},
	} {
		name, size, hidden := peerName(fdpass.Handoff{FD: fd}, tt.family)
		ip, _ := netip.AddrFromSlice(name[tt.ip : tt.ip+tt.want.BitLen()/8])
		if binary.NativeEndian.Uint16(name[:]) != tt.family || binary.BigEndian.Uint16(name[2:]) != port || ip != tt.want || size != tt.size || hidden {
			t.Errorf("family %d: % x of %d, hidden %v", tt.family, name, size, hidden)
		}
	}
	// Of a connection that was reset, what the balancer knows of it.
	gone := fdpass.Handoff{FD: -1, Client: netip.MustParseAddrPort("[fe80::1%3]:99")}
	name, _, hidden := peerName(gone, unix.AF_INET6)
	if ip := netip.AddrFrom16([16]byte(name[8:24])); ip.String() != "fe80::1" || binary.NativeEndian.Uint32(name[24:]) != 3 || hidden {
		t.Errorf("%v, scope % x, hidden %v", ip, name[24:], hidden)
	}
	if name, size, hidden := peerName(gone, unix.AF_INET); !hidden || size != 16 || [4]byte(name[4:8]) != [4]byte{} {
		t.Errorf("% x of %d, hidden %v", name, size, hidden)
	}
	gone.Client = netip.MustParseAddrPort("[::ffff:127.0.0.9]:99")
	if name, _, hidden := peerName(gone, unix.AF_INET); hidden || [4]byte(name[4:8]) != [4]byte{127, 0, 0, 9} {
		t.Errorf("% x, hidden %v", name, hidden)
	}
}

// TestNotKept: such a worker cannot go on under another program.
func TestNotKept(t *testing.T) {
	l, _ := bare(t, 0)
	if _, err := l.Save(reexec.NewBundle("this")); err != supervisor.ErrNotKept {
		t.Error(err)
	}
}

// TestAddresses: a mapped address of the balancer is IPv4's.
func TestAddresses(t *testing.T) {
	l, _ := bare(t, 0)
	for bound, want := range map[string]bool{"127.0.0.1:80": true, "0.0.0.0:80": true, "127.0.0.3:80": false, "127.0.0.1:81": false} {
		fits := slices.ContainsFunc(l.addresses, func(at foreign.Address) bool {
			return at.Fit(foreign.Address{AddrPort: netip.MustParseAddrPort(bound)}) > 0
		})
		if fits != want {
			t.Errorf("%s: %v", bound, fits)
		}
	}
}

// woken counts decoys with wake-ups.
func (l *Link) woken() int {
	_, n := l.decoysFor(anyFamily)
	return n
}

// TestQueueThatIsTooLong: a connection that could not be given to the worker is queued again, also if others have come meanwhile. Then there
// is no room.
func TestQueueThatIsTooLong(t *testing.T) {
	l, _ := bare(t, 1)
	for range maxQueue + 1 {
		l.queue = append(l.queue, queued{family: unix.AF_INET})
	}
	n, err := l.Deliver([]fdpass.Handoff{{FD: -1}})
	l.queue = nil
	if n != 0 || !errors.Is(err, fdpass.ErrFull) {
		t.Errorf("took %d, %v", n, err)
	}
}
