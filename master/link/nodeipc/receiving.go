package nodeipc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxRights is how many descriptors one message can carry (SCM_MAX_FD, net/core/scm.h).
const maxRights = 253

// receiving is what one recvmsg fills.
//
// It has room for all descriptors that can come, since those for which there is none the kernel closes in
// recvmsg, and that may wait as long as the worker likes (fdpass.Bin). For want of descriptors the kernel
// does so in any case. So the system call is a raw one: then the Go runtime sees a thread that does
// not yield, and its signal ends the waiting after a few hundredths of a second (fdpass.CloseConnections).
type receiving struct {
	buffer, oob []byte
	msg         unix.Msghdr
	iov         unix.Iovec
}

func newReceiving() receiving {
	return receiving{buffer: make([]byte, 64<<10), oob: make([]byte, unix.CmsgSpace(4*maxRights))}
}

// recvmsg does not wait. The caller owns the descriptors.
func (r *receiving) recvmsg(socket uintptr) (n int, fds []int, err error) {
	for {
		r.iov.Base = &r.buffer[0]
		r.iov.SetLen(len(r.buffer))
		r.msg.Iov, r.msg.Iovlen = &r.iov, 1
		r.msg.Control = &r.oob[0]
		r.msg.SetControllen(len(r.oob))
		got, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, socket, uintptr(unsafe.Pointer(&r.msg)), unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		switch errno {
		case 0:
			return int(got), rightsIn(r.oob[:r.msg.Controllen]), nil
		case unix.EINTR:
		default:
			return 0, nil, errno
		}
	}
}

// rightsIn returns the descriptors of control messages.
func rightsIn(oob []byte) (all []int) {
	if len(oob) == 0 {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil // the kernel wrote it: does not happen
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}
