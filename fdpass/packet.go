package fdpass

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxRights is how many descriptors a message can carry (SCM_MAX_FD, net/core/scm.h).
	maxRights = 253
	// maxControl has room for as many, also if they are more than are allowed: those for which
	// there is none the kernel closes in recvmsg, and that may wait (foreign.go). And it has room
	// for what whoever shares our end may have asked for (SO_PASSCRED, SO_PASSPIDFD; man 7 unix),
	// which would take the descriptors' place.
	maxControl = 4*maxRights + 512
)

// packet is one message as the kernel delivers it.
type packet struct {
	body  [maxMessage + 1]byte // one more than is allowed, to notice what is longer
	n     int
	oob   [maxControl]byte
	flags int
	fds   []int // the descriptors that arrived
	err   error
	msg   unix.Msghdr
	iov   unix.Iovec
	raw   bool // recvmsg does not wait
}

// recvmsg makes one attempt; false means that no message is there.
func (p *packet) recvmsg(fd uintptr, flags int) bool {
	for {
		p.fds = p.fds[:0]
		errno := p.recvmsgOnce(fd, flags|unix.MSG_CMSG_CLOEXEC)
		p.err = nil
		switch errno {
		case 0:
			p.collect(p.oob[:p.msg.Controllen])
		case unix.EINTR, unix.ECONNRESET:
			// Reset means that the other side closed with messages of ours
			// unread, and is said once: what it sent is still to be received.
			continue
		case unix.EAGAIN:
			return false
		default:
			p.err = errno
		}
		return true
	}
}

// recvmsgOnce is recvmsg(2), a raw call if it does not wait: an ordinary one wakes the runtime's monitor thread whenever the
// process was idle before.
func (p *packet) recvmsgOnce(fd uintptr, flags int) (errno syscall.Errno) {
	p.iov.Base = &p.body[0]
	p.iov.SetLen(len(p.body))
	p.msg = unix.Msghdr{Iov: &p.iov, Iovlen: 1, Control: &p.oob[0]}
	p.msg.SetControllen(len(p.oob))
	var n uintptr
	if p.raw {
		n, _, errno = unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&p.msg)), uintptr(flags))
	} else {
		n, _, errno = unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&p.msg)), uintptr(flags))
	}
	p.n, p.flags = 0, 0
	if errno == 0 {
		p.n, p.flags = int(n), int(p.msg.Flags)
	}
	return errno
}

// collect finds the descriptors in the control messages, all of them, so that
// none leaks whatever the message says.
func (p *packet) collect(oob []byte) {
	for len(oob) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return // the kernel wrote it: does not happen
		}
		oob = rest
		if header.Level != unix.SOL_SOCKET {
			continue
		}
		switch header.Type {
		case unix.SCM_RIGHTS:
			for ; len(data) >= 4; data = data[4:] {
				p.fds = append(p.fds, descriptor(data))
			}
		case unix.SCM_PIDFD:
			unix.Close(descriptor(data))
		}
	}
}

func descriptor(b []byte) int { return int(int32(binary.NativeEndian.Uint32(b))) }

// end tells whether this is the end of file. The kernel makes no difference
// between that and an empty message.
func (p *packet) end() bool { return p.err == nil && p.n == 0 && len(p.fds) == 0 }

// truncated tells whether descriptors of the message did not arrive.
func (p *packet) truncated() bool { return p.flags&unix.MSG_CTRUNC != 0 }

// starved tells whether they did not because this process is at its limit of
// open files.
func (p *packet) starved() bool {
	parts, err := parse(p.body[:p.n])
	return err == nil && p.truncated() && len(p.fds) < parts.count
}

// incoming receives messages.
//
// A descriptor for which there is no room is lost for ever. So near the limit of
// open files a message is peeked, which delivers its descriptors too, and is
// removed from the mailbox only when all of them arrived.
type incoming struct {
	*packet // the message
	spare   *packet
	read    func(fd uintptr) bool
	flags   int  // of recvmsg, besides
	limit   int  // of open files, as it was when the Conn was made
	near    bool // this process was near the limit once
	careful bool // peek
	kept    bool // the message is still in the mailbox
	whole   bool // keep what has not arrived whole, whatever it is
	alone   bool // nobody else receives
	discard func(fds []int)
}

func newIncoming() *incoming {
	in := &incoming{packet: new(packet), spare: new(packet), limit: openFileLimit()}
	in.read = in.recvmsg
	in.near = in.limit <= 2*nearLimit
	in.careful = true // nothing is known yet
	in.discard = closeAll
	return in
}

// takeWhole prepares for messages with descriptors of which the kernel must close none in recvmsg: each message is peeked until all
// of them have arrived. Nobody else may receive from this end.
func (in *incoming) takeWhole() { in.near, in.whole, in.alone = true, true, true }

// nearLimit is how many free descriptors make receiving careful: two full
// messages, since the first may use up what the last one left.
const nearLimit = 2 * MaxBatch

// recvmsg makes one attempt; false asks the poller to wait.
func (in *incoming) recvmsg(fd uintptr) bool {
	in.kept = false
	if !in.careful {
		return in.packet.recvmsg(fd, in.flags)
	}
	for in.packet.recvmsg(fd, in.flags|unix.MSG_PEEK) {
		in.kept = in.starved() || in.whole && in.truncated()
		if in.kept || in.err != nil {
			return true
		}
		if in.alone {
			in.drop(fd)
			return true
		}
		if in.remove(fd) {
			return true
		}
	}
	return false
}

// drop removes the message that was peeked, which nobody else can have received: without its descriptors, of which there are
// copies already, so that the kernel closes no last one.
func (in *incoming) drop(fd uintptr) {
	var start [1]byte
	errno := unix.EINTR
	for errno == unix.EINTR || errno == unix.ECONNRESET { // which is said once
		_, _, errno = unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&start)), uintptr(len(start)), unix.MSG_DONTWAIT, 0, 0)
	}
}

// remove receives the message that was peeked, again with its descriptors: if
// somebody else receives from this end too, it may be another message by now. It
// returns false when there is none any more.
func (in *incoming) remove(fd uintptr) bool {
	in.packet, in.spare = in.spare, in.packet
	peeked := in.spare
	there := in.packet.recvmsg(fd, unix.MSG_DONTWAIT)
	if there && in.truncated() && bytes.Equal(in.body[:in.n], peeked.body[:peeked.n]) {
		in.packet, in.spare = peeked, in.packet // there was room for one copy only
	}
	in.discard(in.spare.fds)
	return there
}

// learn decides how to receive the next message. A descriptor gets the lowest free
// number, so a high one says that the limit is near. A low one does not say that it
// is far, only that something was closed: a Conn that was near it once stays careful.
func (in *incoming) learn() {
	n := len(in.fds)
	if in.truncated() || n > 0 && in.fds[n-1] >= in.limit-nearLimit {
		in.near = true
	}
	if in.near || n > 0 {
		in.careful = in.near
	}
}

func openFileLimit() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int(min(limit.Cur, 1<<30))
}
