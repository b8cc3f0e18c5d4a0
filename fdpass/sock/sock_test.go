package sock_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
)

// TestControl: f has the descriptor, its error comes back, and O_NONBLOCK is as it was.
func TestControl(t *testing.T) {
	fdtest.NoLeaks(t)
	client, _ := fdtest.TCPPair(t)
	failed := errors.New("failed")
	if err := sock.Control(client, func(int) error { return failed }); err != failed {
		t.Errorf("error %v, want f's", err)
	}
	fdtest.Check(t, sock.Control(client, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if flags&unix.O_NONBLOCK == 0 {
			t.Error("the connection waits in its system calls")
		}
		return err
	}))
	client.Close()
	if err := sock.Control(client, func(int) error { t.Error("called"); return nil }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: error %v", err)
	}
	file, err := os.Open(os.DevNull)
	fdtest.Check(t, err)
	file.Close()
	if err := sock.Control(file, func(int) error { t.Error("called"); return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed file: error %v", err)
	}
	var none *os.File
	if err := sock.Control(none, func(int) error { t.Error("called"); return nil }); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("no file: error %v", err)
	}
}

// TestDuplicate: it is the same socket by another number, which no program inherits.
func TestDuplicate(t *testing.T) {
	fdtest.NoLeaks(t)
	client, _ := fdtest.TCPPair(t)
	fd, err := sock.Duplicate(client)
	fdtest.Check(t, err)
	defer unix.Close(fd)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor's flags %#x, %v, want FD_CLOEXEC", flags, err)
	}
	inode, err := sock.Inode(client)
	fdtest.Check(t, err)
	if got, err := sock.InodeFD(fd); got != inode || err != nil {
		t.Errorf("inode %d, %v, want %d", got, err, inode)
	}
	if name := fdtest.OpenFiles()[fd]; name != fmt.Sprintf("socket:[%d]", inode) {
		t.Errorf("inode %d, and /proc says %q", inode, name)
	}
	client.Close()
	if fd, err := sock.Duplicate(client); fd != -1 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %d, %v", fd, err)
	}
}

func TestAddresses(t *testing.T) {
	fdtest.NoLeaks(t)
	client, fd := fdtest.Connection(t)
	defer unix.Close(fd)
	if at, err := sock.Local(fd); err != nil || at.String() != client.RemoteAddr().String() {
		t.Errorf("local %v, %v, want %v", at, err, client.RemoteAddr())
	}
	if at, err := sock.Peer(fd); err != nil || at.String() != client.LocalAddr().String() {
		t.Errorf("peer %v, %v, want %v", at, err, client.LocalAddr())
	}

	unconnected, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	defer unix.Close(unconnected)
	if at, err := sock.Peer(unconnected); at.IsValid() || !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("peer %v, %v of a socket without", at, err)
	}

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if at, err := sock.Local(pair[0]); at.IsValid() || err != nil {
		t.Errorf("local %v, %v of a Unix socket", at, err)
	}
}

// FuzzAddrPort: an address is the same after it has been a socket address, in either of its two forms.
func FuzzAddrPort(f *testing.F) {
	for _, text := range []string{"127.0.0.1:65535", "[::1]:80", "[::ffff:192.0.2.1]:443", "[fe80::1%3]:1", "[fe80::1%4294967295]:1", "0.0.0.0:0"} {
		at := netip.MustParseAddrPort(text)
		f.Add(at.Addr().AsSlice(), at.Port(), uint32(len(at.Addr().Zone())))
	}
	f.Fuzz(func(t *testing.T, ip []byte, port uint16, zone uint32) {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok {
			return
		}
		if zone != 0 && addr.Is6() {
			addr = addr.WithZone(fmt.Sprint(zone))
		}
		sa, family := sock.Sockaddr(netip.AddrPortFrom(addr, port))
		want := netip.AddrPortFrom(addr.Unmap(), port)
		if got := sock.AddrPort(sa); got != want {
			t.Errorf("%v became %v", want, got)
		}
		var raw unix.RawSockaddrInet6
		bigEndian := (*[2]byte)(unsafe.Pointer(&raw.Port))
		raw.Family, bigEndian[0], bigEndian[1] = uint16(family), byte(port>>8), byte(port)
		if family == unix.AF_INET {
			(*unix.RawSockaddrInet4)(unsafe.Pointer(&raw)).Addr = addr.As4()
		} else {
			raw.Addr = addr.As16()
			if addr.Zone() != "" {
				raw.Scope_id = zone
			}
		}
		if got := sock.RawAddrPort(&raw); got != want {
			t.Errorf("raw, %v became %v", want, got)
		}
	})
}

// TestRawAddrPort: no allocation on the way of each connection.
func TestRawAddrPort(t *testing.T) {
	raw := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: netip.IPv6Loopback().As16()}
	if n := testing.AllocsPerRun(100, func() { sock.RawAddrPort(&raw) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	raw.Family = unix.AF_UNIX
	if at := sock.RawAddrPort(&raw); at.IsValid() {
		t.Errorf("%v of a Unix socket", at)
	}
}

// TestPolled: a pipe is in Go's poller; a file that is on a disk is not.
func TestPolled(t *testing.T) {
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if err := sock.Polled(ours); err != nil {
		t.Error(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := sock.Polled(file); err != sock.ErrNotPolled {
		t.Errorf("a file on a disk: %v", err)
	}
}
