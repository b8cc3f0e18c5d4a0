package balancer

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
)

// sink takes everything at no cost.
type sink struct{ taken int }

func (s *sink) Deliver(conns []fdpass.Handoff) (int, error) {
	s.taken += len(conns)
	return len(conns), nil
}

// straight returns a balancer with n slots, its router, and a batch of clients for it.
func straight(t testing.TB, n int) (b *Balancer, r *router, batch []connection) {
	table := NewTable(n)
	for slot := range n {
		table.Fill(slot, new(sink))
	}
	b, err := New(DefaultConfig(), table)
	if err != nil {
		t.Fatal(err)
	}
	batch = make([]connection, fdpass.MaxBatch)
	for i := range batch {
		client := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		batch[i].Handoff = fdpass.Handoff{FD: -1, Client: netip.AddrPortFrom(client, 1)}
	}
	router := b.newRouter()
	return b, &router, b.identify(batch, nil)
}

// TestStraightLineAllocatesNothing: placing and grouping a batch, and all of the line with mailboxes
// at its end.
func TestStraightLineAllocatesNothing(t *testing.T) {
	b, r, batch := straight(t, 7)
	reexec.Lock.RLock()
	r.route(batch) // its buffers grow once
	if n := testing.AllocsPerRun(100, func() { r.route(b.identify(batch, nil)) }); n != 0 {
		t.Errorf("placing a batch allocates %v times", n)
	}
	reexec.Lock.RUnlock()

	const runs = 50
	l := newLine(t, 2, byAddress)
	l.connect(runs + 1)
	l.batch = make([]connection, 0, 1)
	if n := testing.AllocsPerRun(runs, l.pass); n != 0 {
		t.Errorf("accepting and delivering allocates %v times", n)
	}
	l.disconnect(runs + 1)
}

// TestStraightLineIsRaw: no system call from accepting to delivering is an ordinary one, also behind a proxy, where a
// head is peeked, and with PROXY headers, which are read. An ordinary one would wake the runtime's monitor thread.
func TestStraightLineIsRaw(t *testing.T) {
	for name, v := range map[string]struct {
		change func(*Config)
		first  string // what each client sends
	}{
		"address":        {byAddress, ""},
		"header":         {behindProxy, proxiedHead},
		"PROXY protocol": {func(c *Config) { c.Clients.ProxyProtocol = true }, "PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			const n = 100 // more than a batch
			l := newLine(t, 3, v.change)
			l.connect(n)
			for _, client := range l.clients {
				unix.Write(client, []byte(v.first))
			}
			for _, call := range fdtest.OrdinaryCalls(t, func() { l.pass(); l.pass() }) {
				t.Error(call)
			}
			l.disconnect(n)
		})
	}
}

// TestRouteKeepsOrder: each connection goes to its slot, those of a slot in the
// order in which they came.
func TestRouteKeepsOrder(t *testing.T) {
	const slots = 5
	table := NewTable(slots)
	workers := make([]*recorder, slots)
	for slot := range workers {
		workers[slot] = new(recorder)
		table.Fill(slot, workers[slot])
	}
	b, err := New(DefaultConfig(), table)
	if err != nil {
		t.Fatal(err)
	}
	r := b.newRouter()
	for round := range 3 {
		_, _, batch := straight(t, 1)
		for i := range batch {
			batch[i].FD = 1000*round + i
		}
		reexec.Lock.RLock()
		r.route(batch)
		reexec.Lock.RUnlock()
	}
	total := 0
	for slot, w := range workers {
		for i, h := range w.got {
			if home := hash.DefaultConfig().Key(h.Client.Addr()).Slot(slots); home != slot {
				t.Errorf("client %v is in slot %d, belongs to %d", h.Client, slot, home)
			}
			if i > 0 && h.FD <= w.got[i-1].FD {
				t.Errorf("slot %d: connection %d behind %d", slot, h.FD, w.got[i-1].FD)
			}
		}
		total += len(w.got)
	}
	if total != 3*fdpass.MaxBatch {
		t.Errorf("%d connections arrived, %d were routed", total, 3*fdpass.MaxBatch)
	}
}

// recorder remembers descriptors that are none.
type recorder struct{ got []fdpass.Handoff }

func (w *recorder) Deliver(conns []fdpass.Handoff) (int, error) {
	w.got = append(w.got, conns...)
	return len(conns), nil
}

// TestPeerAddress: every kind of address as accept4(2) returns it.
func TestPeerAddress(t *testing.T) {
	for _, network := range []struct{ listen, dial, want string }{
		{"127.0.0.1:0", "127.0.0.1", "127.0.0.1"},
		{"[::1]:0", "::1", "::1"},
		{":0", "127.0.0.1", "127.0.0.1"}, // ::ffff:127.0.0.1 to the kernel
		{":0", "::1", "::1"},
	} {
		ln, err := Listen(t.Context(), network.listen)
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		conn, err := net.Dial("tcp", net.JoinHostPort(network.dial, port))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := New(DefaultConfig(), NewTable(1))
		a, err := newAcceptor(b, ln)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.raw.Read(func(listener uintptr) bool {
			reexec.Lock.RLock()
			defer reexec.Lock.RUnlock()
			return a.take(listener)
		}); err != nil || len(a.batch) != 1 {
			t.Fatal(len(a.batch), err)
		}
		want := netip.AddrPortFrom(netip.MustParseAddr(network.want), conn.LocalAddr().(*net.TCPAddr).AddrPort().Port())
		if got := a.batch[0].Client; got != want {
			t.Errorf("%s on %s: client %v, want %v", network.dial, network.listen, got, want)
		}
		unix.Close(a.batch[0].FD)
		a.file.Close()
		conn.Close()
	}
	scoped := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: netip.MustParseAddr("fe80::1").As16(), Scope_id: 7}
	if got := sock.RawAddrPort(&scoped).Addr().String(); got != "fe80::1%7" {
		t.Errorf("link-local client is %s", got)
	}
}

// TestListenFamilies: ":0" is both, "[::]:0" is IPv6 alone (man 7 ipv6, IPV6_V6ONLY).
func TestListenFamilies(t *testing.T) {
	for address, only := range map[string]int{":0": 0, "[::]:0": 1} {
		ln, err := Listen(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ln.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); got != only || err != nil {
				t.Errorf("%s: IPV6_V6ONLY is %d, %v, want %d", address, got, err, only)
			}
		})
		ln.Close()
	}
}

// halfCopier takes copies of the first half of what it is given, and nothing a second time.
type halfCopier struct{ taken int }

func (w *halfCopier) Deliver([]fdpass.Handoff) (int, error) { return 0, fdpass.ErrFull }

func (w *halfCopier) Copy(conns []fdpass.Handoff) (int, error) {
	n := (len(conns) + 1) / 2
	w.taken += n
	return n, fdpass.ErrFull
}

// TestRouteClosesWhatWasCopied and nothing else: what its worker has not taken is parked, and what
// lies between is somebody else's.
func TestRouteClosesWhatWasCopied(t *testing.T) {
	_, _, batch := straight(t, 1)
	batch = batch[:9]
	table := NewTable(1)
	w := new(halfCopier)
	table.Fill(0, w)
	cfg := DefaultConfig()
	cfg.RetryDelay, cfg.MaxRetries = time.Hour, 1 // what is parked stays there
	b, err := New(cfg, table)
	if err != nil {
		t.Fatal(err)
	}
	fds := make([]int, len(batch)+1)
	for i := range fds {
		if fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	const foreign = 2
	others := append(append([]int{}, fds[:foreign]...), fds[foreign+1:]...)
	for i := range batch {
		batch[i].FD = others[i]
	}
	router := b.newRouter()
	reexec.Lock.RLock()
	router.route(batch)
	reexec.Lock.RUnlock()
	for i, fd := range fds {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if open := err == nil; open != (i == foreign || i > w.taken) {
			t.Errorf("descriptor %d of %d is open: %v; %d were taken, number %d is foreign", i, len(fds), open, w.taken, foreign)
		}
	}
	unix.Close(fds[foreign])
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.Shutdown(ctx) // refuses what is parked
}
