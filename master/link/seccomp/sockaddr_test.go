package seccomp

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// sockaddr writes an address as a program would.
func sockaddr(family uint16, at netip.AddrPort) []byte {
	b := binary.NativeEndian.AppendUint16(nil, family)
	b = binary.BigEndian.AppendUint16(b, at.Port())
	if family == unix.AF_INET6 {
		ip := at.Addr().As16()
		return append(append(append(b, make([]byte, 4)...), ip[:]...), make([]byte, 4)...)
	}
	ip := at.Addr().As4()
	return append(append(b, ip[:]...), make([]byte, 8)...)
}

func FuzzSockaddr(f *testing.F) {
	for _, at := range []string{"127.0.0.1:80", "0.0.0.0:8080"} {
		f.Add(sockaddr(unix.AF_INET, netip.MustParseAddrPort(at)))
		f.Add(sockaddr(unix.AF_UNSPEC, netip.MustParseAddrPort(at)))
	}
	for _, at := range []string{"[::]:80", "[::ffff:127.0.0.1]:80", "[2001:db8::1]:65535"} {
		f.Add(sockaddr(unix.AF_INET6, netip.MustParseAddrPort(at)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		bound, family, ok := parseSockaddr(b)
		if !ok {
			return
		}
		if !bound.IsValid() || bound.Addr().Is4In6() || family == unix.AF_INET && !bound.Addr().Is4() {
			t.Errorf("%x: %v of family %d", b, bound, family)
		}
		// Bytes behind the address do not matter, nor does the spelling.
		if again, same, ok := parseSockaddr(sockaddr(family, bound)); !ok || again != bound || same != family {
			t.Errorf("%x: %v of family %d, then %v of %d", b, bound, family, again, same)
		}
	})
}

func TestParseFlags(t *testing.T) {
	for text, want := range map[string]int{
		"pos:\t0\nflags:\t02004002\nmnt_id:\t10\n": unix.O_RDWR | unix.O_NONBLOCK | unix.O_CLOEXEC,
		"pos:\t0\nflags:\t02\n":                    unix.O_RDWR,
		"flags:\t9\n":                              0,
		"":                                         0,
	} {
		if got := parseFlags(text); got != want {
			t.Errorf("%q: %o, want %o", text, got, want)
		}
	}
}
