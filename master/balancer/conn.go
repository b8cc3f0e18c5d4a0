package balancer

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/clientip"
)

// NoSlot stands for the slot of a client that is not known yet.
const NoSlot = -1

// arrival is a connection whose client is known.
type arrival struct {
	fdpass.Handoff
	client clientip.Client
	parked time.Time // when it had to wait; zero: it had not
}

// believe returns a connection that has come back with what is true of it: a worker that gives one back says from whom
// it is, and could say that of any. Only what a PROXY header has said is the record's alone.
func (b *Balancer) believe(h fdpass.Handoff) fdpass.Handoff {
	if !b.cfg.Clients.ProxyProtocol {
		h.Flags &^= fdpass.FlagProxied
	}
	if h.Flags&fdpass.FlagProxied == 0 {
		if peer := peerOf(h.FD); peer.IsValid() { // else it is gone
			h.Client = peer
		}
	}
	return h
}

// peerOf returns a connection's peer; it is invalid when there is none any more.
func peerOf(fd int) netip.AddrPort {
	var peer unix.RawSockaddrInet6 // large enough for both families
	size := uint32(unix.SizeofSockaddrInet6)
	_, _, errno := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return peerAddress(&peer)
}

// peerAddress reads a socket address of either family. An IPv4 client of a dual
// stack listener is an IPv4 client.
func peerAddress(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	switch sa.Family {
	case unix.AF_INET:
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), port)
	case unix.AF_INET6:
		addr := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.Scope_id != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(sa.Scope_id), 10))
		}
		return netip.AddrPortFrom(addr, port)
	default:
		return netip.AddrPort{}
	}
}

// dup returns a duplicate of a file's descriptor, which the caller owns.
func dup(file *os.File) (fd int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	raw.Control(func(borrowed uintptr) {
		if fd, err = unix.FcntlInt(borrowed, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			err = errNoFile
		}
	})
	return fd, err
}
