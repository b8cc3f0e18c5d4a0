package acceptinject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/seccomp"
)

// acceptCall is a call of accept or accept4.
type acceptCall struct {
	seccomp.Caller
	id        uint64
	decoy     *decoy
	name      uint64 // where the caller wants the peer's address; 0: nowhere
	nameSize  uint64 // where the caller says how much room there is, and wants the address's size
	flags     int    // of accept4
	signalled bool   // at the last tick a signal was there that may be for the caller
}

// handleAccept answers a call of accept: with a connection if one is queued; else at once if the socket
// is non-blocking, and otherwise when there is one.
//
// That the call still waits is not asked for each: an answer to one that does not is refused.
func (l *Link) handleAccept(n *seccomp.Notification, caller seccomp.Caller, flags int) {
	call := acceptCall{Caller: caller, id: n.ID, decoy: l.decoyOf(caller), name: n.Args[1], nameSize: n.Args[2], flags: flags}
	switch {
	case call.decoy == nil:
		l.Notifs.Continue(n.ID)
		return
	case flags&^(unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC) != 0:
		l.Notifs.Answer(n.ID, unix.EINVAL)
		return
	}
	l.MarkReady()
	l.mu.Lock()
	l.accepted = true
	l.calls++
	if conn, ok := l.pop(call.decoy); ok {
		l.mu.Unlock()
		l.answer(&call, conn)
		return
	}
	errno := l.wait(&call)
	l.mu.Unlock()
	if errno != 0 {
		l.Notifs.Answer(n.ID, errno)
	}
}

// wait has a call for which there is no connection wait, or tells what to answer. mu is held.
func (l *Link) wait(call *acceptCall) unix.Errno {
	call.decoy.drains = call.decoy.drains || !call.decoy.woken
	woken := call.decoy.clear()
	switch {
	case !call.decoy.blocks():
		return unix.EAGAIN
	case woken: // the caller does not expect to wait (man 2 accept, ECONNABORTED)
		return unix.ECONNABORTED
	case len(l.waiting) >= maxWaiting:
		return unix.ENOBUFS
	case !l.Notifs.StillValid(call.id):
		return unix.ESRCH // it was not this process that we have looked into
	}
	l.AddRoot(call.TID)
	l.waiting = append(l.waiting, *call)
	l.keepHouse()
	return 0
}

// answerWaiting answers calls that wait, as long as there are connections.
func (l *Link) answerWaiting() {
	for {
		l.mu.Lock()
		call, conn, ok := l.popWaiting()
		if ok {
			l.accepted = true
			l.calls++
		}
		l.mu.Unlock()
		if !ok {
			return
		}
		l.answer(&call, conn)
	}
}

// answer answers a call with a connection, of which it takes ownership. Until the call has
// been answered the connection is ours: if that fails it is queued again.
func (l *Link) answer(call *acceptCall, conn fdpass.Handoff) {
	errno := l.tryAnswer(call, conn)
	if errno == errShort {
		time.Sleep(shortPause)
	}
	l.mu.Lock()
	if errno != 0 {
		l.queue = slices.Insert(l.queue, 0, queued{conn, familyOf(conn.FD)})
		l.wakeup()
		l.keepHouse()
	}
	stopped := l.stopped
	l.mu.Unlock()
	switch {
	case errno == 0:
		fdpass.CloseConnections(conn.FD)
		return
	case errno == unix.EPERM && l.Notifs.StillValid(call.id):
		l.leave(fmt.Errorf("process %d cannot be told whom it accepts: %w; it must stay the master's user, or the master needs CAP_SYS_PTRACE and CAP_DAC_OVERRIDE",
			call.TID, errno))
	case stopped:
		l.returnQueue()
	}
	l.Notifs.Answer(call.id, errno) // unless the caller is gone
}

func (l *Link) tryAnswer(call *acceptCall, conn fdpass.Handoff) unix.Errno {
	if call.name != 0 {
		name, size, hidden := peerName(conn, call.decoy.family)
		if hidden {
			l.WarnOnce("a worker listens on IPv4 only, and does not see addresses of IPv6 clients", "client", conn.Client.String())
		}
		if errno := l.writeName(call, name[:], size); errno != 0 {
			return errno
		}
	}
	// O_NONBLOCK belongs to the connection, not to the descriptor.
	blocking := call.flags&unix.SOCK_NONBLOCK == 0
	if blocking {
		setNonblock(conn.FD, false)
	}
	number, errno := l.Notifs.AddFD(call.id, conn.FD, call.flags&unix.SOCK_CLOEXEC != 0)
	if errno == 0 {
		errno = l.Notifs.Return(call.id, number)
	}
	if errno != 0 && blocking {
		setNonblock(conn.FD, true)
	}
	return errno
}

// setNonblock is unix.SetNonblock for a connection, which has no other flags that can be set.
func setNonblock(fd int, nonblocking bool) {
	flags := 0
	if nonblocking {
		flags = unix.O_NONBLOCK
	}
	unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETFL, uintptr(flags))
}

// writeName is that of a call that is one of the link's. The caller accepts again if there is no descriptor or no memory
// for it.
func (l *Link) writeName(call *acceptCall, name []byte, size int) unix.Errno {
	errno := call.writeName(name, size, func() bool { return l.Notifs.StillValid(call.id) })
	if slices.Contains(shortages, errno) {
		l.CouldNot("a worker could not be told whom it accepts, and has to accept again", errno)
		return errShort
	}
	return errno
}

// shortages are what this process may lack for a moment.
var shortages = []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM}

const (
	// errShort is the answer then: what callers of accept know to mean that they are to call it again (man 2 accept).
	errShort = unix.ECONNABORTED
	// shortPause is how long that takes, or they would do so again and again.
	shortPause = 10 * time.Millisecond
)

// writeName writes a peer's address to where the caller wants it, cut to the room that there is,
// and its size.
//
// The process may end at any moment, and its number be another's, of another user. So the memory is
// opened first, and what is open stays the memory of that process: if the call still waits then, it is
// the caller's (man 2 seccomp_unotify).
func (call *acceptCall) writeName(name []byte, size int, stillValid func() bool) unix.Errno {
	var path [32]byte
	at := append(strconv.AppendInt(append(path[:0], "/proc/"...), int64(call.TID), 10), "/mem"...)
	memory, err := unix.Open(string(at), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return memoryErrno(err)
	}
	defer unix.RawSyscall(unix.SYS_CLOSE, uintptr(memory), 0, 0)
	if !stillValid() {
		return unix.ESRCH
	}
	var room [4]byte
	if got, err := unix.Pread(memory, room[:], int64(call.nameSize)); err != nil || got < len(room) {
		return memoryErrno(err)
	}
	n := int(int32(binary.NativeEndian.Uint32(room[:])))
	if n < 0 {
		return unix.EINVAL
	}
	n = min(n, size)
	binary.NativeEndian.PutUint32(room[:], uint32(size))
	if got, err := unix.Pwrite(memory, name[:n], int64(call.name)); err != nil || got < n {
		return memoryErrno(err)
	}
	if got, err := unix.Pwrite(memory, room[:], int64(call.nameSize)); err != nil || got < len(room) {
		return memoryErrno(err)
	}
	return 0
}

// memoryErrno is the answer to a caller whose memory cannot be used.
func memoryErrno(err error) unix.Errno {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return unix.EPERM
	}
	for _, short := range shortages {
		if errors.Is(err, short) {
			return short
		}
	}
	return unix.EFAULT
}

// peerName returns what accept is to say of a connection's peer at a socket of a family, as a socket
// address. hidden says that the peer has no address in that family.
//
// The worker may ask the connection itself, too. Where the balancer's socket is for both
// families and the worker's for IPv4, the connection is made one of IPv4: the answer would confuse
// many a program.
func peerName(conn fdpass.Handoff, family uint16) (name [unix.SizeofSockaddrInet6]byte, size int, hidden bool) {
	var sa unix.RawSockaddrInet6 // large enough for both families
	room := uint32(unsafe.Sizeof(sa))
	_, _, errno := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(conn.FD), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&room)))
	if errno == 0 && sa.Family == family {
		return *(*[unix.SizeofSockaddrInet6]byte)(unsafe.Pointer(&sa)), sizeOf(family), false
	}
	peer := sock.RawAddrPort(&sa)
	if errno != 0 || !peer.IsValid() { // reset meanwhile
		peer = netip.AddrPortFrom(conn.Client.Addr().Unmap(), conn.Client.Port())
	}
	addr := peer.Addr()
	if family == unix.AF_INET && addr.Is4() {
		unix.SetsockoptInt(conn.FD, unix.IPPROTO_IPV6, ipv6AddrForm, unix.AF_INET)
	}
	binary.NativeEndian.PutUint16(name[:], family)
	binary.BigEndian.PutUint16(name[2:], peer.Port())
	switch {
	case family == unix.AF_INET6:
		ip := addr.As16()
		copy(name[8:], ip[:])
		zone, _ := strconv.ParseUint(addr.Zone(), 10, 32)
		binary.NativeEndian.PutUint32(name[24:], uint32(zone))
	case addr.Is4():
		ip := addr.As4()
		copy(name[4:], ip[:])
	default:
		hidden = true
	}
	return name, sizeOf(family), hidden
}

// sizeOf is that of a family's socket addresses.
func sizeOf(family uint16) int {
	if family == unix.AF_INET6 {
		return unix.SizeofSockaddrInet6
	}
	return unix.SizeofSockaddrInet4
}

// ipv6AddrForm is IPV6_ADDRFORM (linux/in6.h): it turns a connection of a mapped IPv4 address into
// one of IPv4.
const ipv6AddrForm = 1
