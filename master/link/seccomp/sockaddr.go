package seccomp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// maxSockaddr is the size of struct sockaddr_storage; bind takes no more.
const maxSockaddr = 128

// shortestInet6 is struct sockaddr_in6 without the scope (linux/in6.h, SIN6_LEN_RFC2133).
const shortestInet6 = 24

// parseSockaddr reads what bind was given for an IP socket. A mapped IPv4 address is IPv4's.
func parseSockaddr(b []byte) (bound netip.AddrPort, family uint16, ok bool) {
	if len(b) < unix.SizeofSockaddrInet4 {
		return bound, 0, false
	}
	family = binary.NativeEndian.Uint16(b)
	port := binary.BigEndian.Uint16(b[2:])
	switch {
	case family == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port), family, true
	case family == unix.AF_UNSPEC && [4]byte(b[4:8]) == [4]byte{}: // as old programs do (net/ipv4/af_inet.c)
		return netip.AddrPortFrom(netip.IPv4Unspecified(), port), unix.AF_INET, true
	case family == unix.AF_INET6 && len(b) >= shortestInet6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), port), family, true
	}
	return bound, 0, false
}
