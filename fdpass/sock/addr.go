package sock

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AddrPort returns the address in sa, a mapped IPv4 address as IPv4's, a zone as its number. It is invalid if sa is
// nil or of no IP socket.
func AddrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return inet6(sa.Addr, sa.ZoneId, uint16(sa.Port))
	default:
		return netip.AddrPort{}
	}
}

// RawAddrPort is AddrPort of what a system call has written. It allocates nothing but the text of a zone.
func RawAddrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	switch sa.Family {
	case unix.AF_INET:
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), port)
	case unix.AF_INET6:
		return inet6(sa.Addr, sa.Scope_id, port)
	default:
		return netip.AddrPort{}
	}
}

func inet6(ip [16]byte, zone uint32, port uint16) netip.AddrPort {
	addr := netip.AddrFrom16(ip).Unmap()
	if zone != 0 {
		addr = addr.WithZone(strconv.FormatUint(uint64(zone), 10))
	}
	return netip.AddrPortFrom(addr, port)
}

// Sockaddr returns an address as bind and connect take it, and its family. A zone must be a number. A mapped IPv4
// address is IPv6's: an IPv6 socket takes it.
func Sockaddr(at netip.AddrPort) (sa unix.Sockaddr, family int) {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}, unix.AF_INET
	}
	zone, _ := strconv.ParseUint(at.Addr().Zone(), 10, 32)
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16(), ZoneId: uint32(zone)}, unix.AF_INET6
}

// Local borrows a socket and returns its own address, invalid with no error if it is no IP socket.
//
// Package unix has functions that do as much, and ask the socket for its protocol, too: one system call more.
func Local(fd int) (netip.AddrPort, error) {
	at, err := rawNamed(unix.SYS_GETSOCKNAME, fd)
	return at, os.NewSyscallError("getsockname", err)
}

// Peer is Local for the other end's address.
func Peer(fd int) (netip.AddrPort, error) {
	at, err := rawNamed(unix.SYS_GETPEERNAME, fd)
	return at, os.NewSyscallError("getpeername", err)
}

// Name borrows a Unix socket and returns what it is bound to; empty if it is not, or is none. A connection has the name that its
// listener had when that was bound.
func Name(fd int) string {
	sa, err := unix.Getsockname(fd)
	if at, ok := sa.(*unix.SockaddrUnix); ok && err == nil && at.Name != "@" { // so package unix says that there is none
		return at.Name
	}
	return ""
}

// Accept borrows a listener and accepts a connection, non-blocking and close-on-exec, which the caller owns, and its
// peer's address.
func Accept(listener int) (fd int, peer netip.AddrPort, err error) {
	var sa unix.RawSockaddrInet6 // large enough for both families
	size := uint32(unsafe.Sizeof(sa))
	r, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	return int(r), RawAddrPort(&sa), nil
}

// rawNamed is a system call that writes an address and never waits, so it is a raw one. Its error is bare.
func rawNamed(call uintptr, fd int) (at netip.AddrPort, err error) {
	var sa unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	if _, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return netip.AddrPort{}, errno
	}
	return RawAddrPort(&sa), nil
}
