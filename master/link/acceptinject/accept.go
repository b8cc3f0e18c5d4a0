package acceptinject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/link/seccomp"
)

// waiter is a call of accept or accept4.
type waiter struct {
	seccomp.Caller
	id        uint64
	door      *door
	name      uint64 // where it wants the peer's address; 0: it does not
	nameSize  uint64 // and where that one's size is, and is to be
	flags     int    // of accept4
	signalled bool   // at the last tick a signal was there that may be for it
}

// accept answers a call of accept: with a connection if one is queued; else at once if the socket
// is non-blocking, and otherwise when there is one.
func (l *Link) accept(n *seccomp.Notification, caller seccomp.Caller, flags int) {
	w := waiter{Caller: caller, id: n.ID, door: l.door(caller), name: n.Args[1], nameSize: n.Args[2], flags: flags}
	switch {
	case !l.Notifs.StillValid(n.ID):
		return // it was not this process that we have looked into
	case w.door == nil:
		l.Notifs.Continue(n.ID)
		return
	case flags&^(unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC) != 0:
		l.Notifs.Answer(n.ID, unix.EINVAL)
		return
	}
	l.MarkReady()
	l.mu.Lock()
	l.accepted = true
	if len(l.queue) > 0 {
		conn := l.pop(w.door)
		l.mu.Unlock()
		l.give(&w, conn)
		return
	}
	some := w.door.clear()
	errno := unix.Errno(0)
	switch {
	case !w.door.blocks():
		errno = unix.EAGAIN
	case some: // it was woken, and does not expect to wait (man 2 accept, ECONNABORTED)
		errno = unix.ECONNABORTED
	case len(l.waiting) >= maxWaiting:
		errno = unix.ENOBUFS
	default:
		l.AddRoot(caller.TID)
		l.waiting = append(l.waiting, w)
	}
	l.mu.Unlock()
	if errno != 0 {
		l.Notifs.Answer(n.ID, errno)
	}
}

// serve gives connections to calls of accept that wait.
func (l *Link) serve() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 || len(l.waiting) == 0 {
			l.mu.Unlock()
			return
		}
		w := l.waiting[0]
		l.waiting = append(l.waiting[:0], l.waiting[1:]...)
		conn := l.pop(w.door)
		l.accepted = true
		l.mu.Unlock()
		l.give(&w, conn)
	}
}

// pop takes the oldest connection, and its knock. mu is held.
//
// The knock goes before the call is answered, as a connection leaves the backlog before accept
// returns. Else a server could see the knock once more, and wait in accept for a connection that
// never comes; it would not notice that it is to finish.
func (l *Link) pop(at *door) fdpass.Handoff {
	conn := l.queue[0]
	l.queue = append(l.queue[:0], l.queue[1:]...)
	l.unknock(at)
	return conn
}

// give answers a call with a connection, of which it takes ownership. Until the call has
// been answered the connection is ours: if that fails it is queued again.
func (l *Link) give(w *waiter, conn fdpass.Handoff) {
	errno := l.tryGive(w, conn)
	l.mu.Lock()
	if errno != 0 {
		l.queue = append([]fdpass.Handoff{conn}, l.queue...)
		l.knock(len(l.queue) - len(l.waiting))
	}
	over := l.over
	l.mu.Unlock()
	switch {
	case errno == 0:
		fdpass.CloseConnections(conn.FD)
		return
	case errno == unix.EPERM && l.Notifs.StillValid(w.id):
		l.leave(fmt.Errorf("acceptinject: process %d cannot be told whom it accepts: %w; it must stay the master's user, or the master needs CAP_SYS_PTRACE",
			w.TID, errno))
	case over:
		l.giveBack()
	}
	l.Notifs.Answer(w.id, errno) // unless it is gone
}

func (l *Link) tryGive(w *waiter, conn fdpass.Handoff) unix.Errno {
	if w.name != 0 {
		name, size, v6 := peerName(conn, w.door.family)
		if v6 {
			l.WarnOnce("the worker listens on IPv4 only, and does not see addresses of IPv6 clients", "client", conn.Client.String())
		}
		if errno := w.write(name[:], size, func() bool { return l.Notifs.StillValid(w.id) }); errno != 0 {
			return errno
		}
	}
	// It is a flag of the connection, not of the descriptor.
	if w.flags&unix.SOCK_NONBLOCK == 0 {
		unix.SetNonblock(conn.FD, false)
	}
	number, errno := l.Notifs.AddFD(w.id, conn.FD, w.flags&unix.SOCK_CLOEXEC != 0)
	if errno == 0 {
		errno = l.Notifs.Return(w.id, number)
	}
	if errno != 0 {
		unix.SetNonblock(conn.FD, true)
	}
	return errno
}

// write writes a peer's address to where the call wants it, cut to the room that there is,
// and its size.
//
// The process may end at any moment, and its number be another's, of another user. So it is the memory that is
// opened, and not the number that is written to: if the call still waits when it is open, it is the caller's,
// and stays that (man 2 seccomp_unotify).
func (w *waiter) write(name []byte, size int, waiting func() bool) unix.Errno {
	memory, err := unix.Open(fmt.Sprintf("/proc/%d/mem", w.TID), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return refused(err)
	}
	defer unix.Close(memory)
	if !waiting() {
		return unix.ESRCH
	}
	var room [4]byte
	if got, err := unix.Pread(memory, room[:], int64(w.nameSize)); err != nil || got < len(room) {
		return refused(err)
	}
	n := int(int32(binary.NativeEndian.Uint32(room[:])))
	if n < 0 {
		return unix.EINVAL
	}
	n = min(n, size)
	binary.NativeEndian.PutUint32(room[:], uint32(size))
	if got, err := unix.Pwrite(memory, name[:n], int64(w.name)); err != nil || got < n {
		return refused(err)
	}
	if got, err := unix.Pwrite(memory, room[:], int64(w.nameSize)); err != nil || got < len(room) {
		return refused(err)
	}
	return 0
}

// refused is what accept is answered when its caller's memory cannot be used.
func refused(err error) unix.Errno {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return unix.EPERM
	}
	return unix.EFAULT
}

// peerName returns what accept is to say of a connection's peer at a socket of a family, as a socket
// address: v6 says that the peer has none in that family.
//
// The worker may ask the connection itself, too. Where the balancer's socket is for both
// families and the worker's for IPv4, the connection is made one of IPv4, or many a program would
// be confused by the answer.
func peerName(conn fdpass.Handoff, family uint16) (name [unix.SizeofSockaddrInet6]byte, size int, v6 bool) {
	peer, is := getpeername(conn.FD)
	if !peer.IsValid() { // reset meanwhile
		peer, is = conn.Client, family
	}
	addr := peer.Addr().Unmap()
	if family == unix.AF_INET && is == unix.AF_INET6 && addr.Is4() {
		unix.SetsockoptInt(conn.FD, unix.IPPROTO_IPV6, ipv6AddrForm, unix.AF_INET)
	}
	binary.NativeEndian.PutUint16(name[:], family)
	binary.BigEndian.PutUint16(name[2:], peer.Port())
	if family == unix.AF_INET6 {
		ip := addr.As16()
		copy(name[8:], ip[:])
		zone, _ := strconv.ParseUint(addr.Zone(), 10, 32)
		binary.NativeEndian.PutUint32(name[24:], uint32(zone))
		return name, unix.SizeofSockaddrInet6, false
	}
	if addr.Is4() {
		ip := addr.As4()
		copy(name[4:], ip[:])
	}
	return name, unix.SizeofSockaddrInet4, !addr.Is4()
}

// ipv6AddrForm is IPV6_ADDRFORM (linux/in6.h): it turns a connection of a mapped IPv4 address into
// one of IPv4.
const ipv6AddrForm = 1

// getpeername returns the address of a connection's peer, and the connection's family. It is
// invalid when there is no peer any more.
func getpeername(fd int) (peer netip.AddrPort, family uint16) {
	name, err := unix.Getpeername(fd)
	if err != nil {
		return peer, 0
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port)), unix.AF_INET
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(name.Addr)
		if name.ZoneId != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(name.ZoneId), 10))
		}
		return netip.AddrPortFrom(addr, uint16(name.Port)), unix.AF_INET6
	}
	return peer, 0
}
