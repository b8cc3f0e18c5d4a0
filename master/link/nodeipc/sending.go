package nodeipc

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sending is one message on its way into the kernel. It keeps what a sendmsg needs, so that
// a connection costs no allocation.
type sending struct {
	run    func(uintptr) // s.sendmsg, once
	rights []byte        // a control message with one descriptor
	fd     *int32        // the one in it
	text   []byte
	with   []byte // rights, or nothing
	n      int
	err    error
}

// send sends text, and fd unless it is -1; s.n and s.err tell the outcome. An error is that
// of a closed channel.
func (s *sending) send(raw syscall.RawConn, text []byte, fd int) error {
	if s.run == nil {
		s.run = s.sendmsg
		s.rights = unix.UnixRights(-1)
		s.fd = (*int32)(unsafe.Pointer(&s.rights[unix.CmsgLen(0)]))
	}
	s.text, s.with = text, nil
	if fd >= 0 {
		*s.fd, s.with = int32(fd), s.rights
	}
	return raw.Control(s.run)
}

func (s *sending) sendmsg(channel uintptr) {
	for s.err = unix.EINTR; s.err == unix.EINTR; {
		s.n, s.err = unix.SendmsgN(int(channel), s.text, s.with, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
}
