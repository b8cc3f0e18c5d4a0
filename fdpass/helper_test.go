package fdpass

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
)

// timeout bounds what should be immediate.
const timeout = fdtest.Patience

// sockets opens n descriptors to pass, until the end of the test.
func sockets(t testing.TB, n int) []int {
	t.Helper()
	fds := make([]int, n)
	for i := range fds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds[i] = fd
	}
	return fds
}

// clients are what is said of connections.
var clients = []Handoff{
	{Client: netip.MustParseAddrPort("127.0.0.1:65535")},
	{Client: netip.MustParseAddrPort("203.0.113.9:0"), Flags: FlagProxied},
	{Client: netip.MustParseAddrPort("[2001:db8:1:2:3:4:5:6]:443"), Flags: FlagProxied},
	{Client: netip.MustParseAddrPort("[fe80::1%4294967295]:1")},
	{Client: netip.MustParseAddrPort("[::ffff:192.0.2.1]:80")},
	{Flags: 0xff},
	{},
}

// handoffs says something different of each descriptor.
func handoffs(fds ...int) []Handoff {
	hs := make([]Handoff, len(fds))
	for i, fd := range fds {
		hs[i] = clients[i%len(clients)]
		hs[i].FD = fd
	}
	return hs
}

// numbered returns n handoffs of one descriptor that their ports tell apart.
func numbered(fd, first, n int) []Handoff {
	hs := make([]Handoff, n)
	for i := range hs {
		hs[i] = Handoff{FD: fd, Client: netip.AddrPortFrom(netip.IPv6Loopback(), uint16(first+i))}
	}
	return hs
}

// pair opens both ends of a mailbox, until the end of the test.
func pair(t testing.TB) (ours, theirs *Conn) {
	t.Helper()
	fd, theirs := rawPair(t)
	ours, err := NewConn(os.NewFile(uintptr(fd), "ours"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	return ours, theirs
}

// rawPair is pair with a bare descriptor at one end, which the caller owns.
func rawPair(t testing.TB) (fd int, theirs *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = NewConn(os.NewFile(uintptr(fds[1]), "theirs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return fds[0], theirs
}

// duplicate opens another descriptor of the same end, until the end of the test.
func duplicate(t testing.TB, c *Conn) *Conn {
	t.Helper()
	fd, err := sock.Duplicate(c)
	fdtest.Check(t, err)
	dup, err := NewConn(os.NewFile(uintptr(fd), "duplicate"))
	fdtest.Check(t, err)
	t.Cleanup(func() { dup.Close() })
	return dup
}

// send fails the test when a message cannot be queued.
func send(t testing.TB, c *Conn, typ Type, hs []Handoff) {
	t.Helper()
	if err := c.TrySend(typ, hs); err != nil {
		t.Fatal(err)
	}
}

// ports receives a message, closes what it carried, and returns the ports.
func ports(c *Conn) ([]int, error) {
	var m Message
	c.SetReceiveDeadline(time.Now().Add(timeout))
	if err := c.Receive(&m); err != nil {
		return nil, err
	}
	CloseHandoffs(m.Handoffs)
	got := make([]int, len(m.Handoffs))
	for i, h := range m.Handoffs {
		got[i] = int(h.Client.Port())
	}
	return got, nil
}

// wantPorts receives messages that must hold the numbers from first to last.
func wantPorts(t testing.TB, c *Conn, first, last int) {
	t.Helper()
	for first <= last {
		got, err := ports(c)
		if err != nil {
			t.Fatalf("received %v, want number %d", err, first)
		}
		for _, n := range got {
			if n != first {
				t.Fatalf("received %v, want them to begin with %d", got, first)
			}
			first++
		}
	}
}

// wantError receives what must be an error.
func wantError(t testing.TB, c *Conn, want error) {
	t.Helper()
	if got, err := ports(c); !errors.Is(err, want) {
		t.Fatalf("received %v, error %v; want error %v", got, err, want)
	}
}

// careful makes a Conn receive as it does near the limit of open files.
func careful(c *Conn) *Conn {
	c.in.near, c.in.careful = true, true
	return c
}
