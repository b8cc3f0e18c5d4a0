package sockdiag

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestTraffic: what has gone over a connection, what nobody has read, and when something came last.
func TestTraffic(t *testing.T) {
	client, server := fdtest.TCPPair(t)
	port := server.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	find := func() *Socket {
		all, err := ListTraffic(port, Established)
		fdtest.Check(t, err)
		i := slices.IndexFunc(all, func(s Socket) bool { return s.Remote == client.LocalAddr().(*net.TCPAddr).AddrPort() })
		if i < 0 {
			t.Fatalf("not in %+v", all)
		}
		return &all[i]
	}
	if s := find(); s.Received != 0 || s.Unread != 0 || s.Unsent != 0 {
		t.Errorf("nothing was sent: %+v", s)
	}
	_, err := client.Write([]byte("hello"))
	fdtest.Check(t, err)
	fdtest.Eventually(t, "five bytes wait", func() bool { s := find(); return s.Received == 5 && s.Unread == 5 })
	_, err = server.Read(make([]byte, 5))
	fdtest.Check(t, err)
	_, err = server.Write(bytes.Repeat([]byte("x"), 100))
	fdtest.Check(t, err)
	fdtest.Eventually(t, "they are read, and the answer has come", func() bool {
		s := find()
		return s.Received == 5 && s.Unread == 0 && s.Acked >= 100 && s.Unsent == 0 && s.SinceSent < time.Hour
	})
}

// TestTrafficOfOldKernels: what is too short says nothing, and everything has just moved.
func TestTrafficOfOldKernels(t *testing.T) {
	for size := range 200 {
		var traffic Traffic
		if traffic.parse(bytes.Repeat([]byte{1}, size)); size < 128 && traffic != (Traffic{}) {
			t.Errorf("of %d bytes: %+v", size, traffic)
		}
	}
}

// TestComesTo: which listener a connection can have come to. A listener of both families has connections of IPv4 as
// sockets of IPv6.
func TestComesTo(t *testing.T) {
	for _, tt := range []struct {
		family          uint8
		local, listener string
		want            bool
	}{
		{unix.AF_INET, "10.0.0.1", "10.0.0.1", true},
		{unix.AF_INET, "10.0.0.1", "::ffff:10.0.0.1", true},
		{unix.AF_INET, "10.0.0.1", "0.0.0.0", true},
		{unix.AF_INET, "10.0.0.1", "10.0.0.2", false},
		{unix.AF_INET, "10.0.0.1", "::", false},
		{unix.AF_INET6, "10.0.0.1", "::", true},
		{unix.AF_INET6, "10.0.0.1", "0.0.0.0", false},
		{unix.AF_INET6, "2001:db8::1", "::", true},
		{unix.AF_INET6, "2001:db8::1", "2001:db8::1", true},
		{unix.AF_INET6, "2001:db8::1", "2001:db8::2", false},
		{unix.AF_INET6, "fe80::1", "fe80::1%eth0", true},
	} {
		s := Socket{Family: tt.family, Local: netip.AddrPortFrom(netip.MustParseAddr(tt.local), 80)}
		if got := s.ComesTo(netip.MustParseAddr(tt.listener)); got != tt.want {
			t.Errorf("family %d, %s comes to %s: %v", tt.family, tt.local, tt.listener, got)
		}
	}
}
