package nodeipc

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLine is the longest message that a worker may send.
const maxLine = 16 << 20

var errTooLong = errors.New("nodeipc: message of a worker over 16 MiB")

// channel is the master's end. Sending does not wait: who sends holds the link's
// lock and keeps what could not be sent.
type channel struct {
	file *os.File
	raw  syscall.RawConn
	in   []byte // received, and not a whole line yet

	buffer, oob []byte // what one recvmsg fills
}

// pair makes a channel. It returns the worker's end, too; the caller owns both.
func pair() (ours *channel, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(fds[0]), "node channel")
	theirs = os.NewFile(uintptr(fds[1]), "node channel of the worker")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		theirs.Close()
		return nil, nil, err
	}
	ours = &channel{file: file, raw: raw, buffer: make([]byte, 64<<10), oob: make([]byte, unix.CmsgSpace(4*8))}
	return ours, theirs, nil
}

// Errors of sending.
var (
	errFull = errors.New("nodeipc: channel full")
	errGone = errors.New("nodeipc: channel closed")
)

// send sends as much of text as there is room for, and returns how much that was. fd,
// if it is not -1, rides on the first byte; it is borrowed.
func (c *channel) send(text []byte, fd int) (n int, err error) {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	ctlErr := c.raw.Control(func(s uintptr) {
		n, err = unix.SendmsgN(int(s), text, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	switch {
	case ctlErr != nil:
		return 0, errGone
	case err == nil:
		return n, nil
	case err == unix.EAGAIN, err == unix.ENOBUFS, err == unix.ENOMEM, err == unix.ETOOMANYREFS, err == unix.EINTR:
		return 0, errFull
	default:
		return 0, errGone
	}
}

// whenRoom calls try now and whenever there is room again, until it returns true.
func (c *channel) whenRoom(try func() (done bool)) error {
	return c.raw.Write(func(uintptr) bool { return try() })
}

// receive waits for bytes and calls handle for each line. Descriptors that a worker
// sends are closed: a program can do that, and nobody here wants one. It returns io.EOF
// when the worker has closed its end.
func (c *channel) receive(handle func(line []byte)) error {
	var n, oobn int
	var err error
	waitErr := c.raw.Read(func(s uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(s), c.buffer, c.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	switch {
	case waitErr != nil:
		return errGone
	case err == unix.ECONNRESET:
		return io.EOF
	case err != nil:
		return os.NewSyscallError("recvmsg", err)
	case n == 0:
		return io.EOF
	}
	closeRights(c.oob[:oobn])
	c.in = append(c.in, c.buffer[:n]...)
	rest := c.in
	for {
		line, behind, found := bytes.Cut(rest, []byte("\n"))
		if !found {
			break
		}
		handle(line)
		rest = behind
	}
	c.in = append(c.in[:0], rest...)
	if len(c.in) > maxLine {
		return errTooLong
	}
	return nil
}

func closeRights(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
}
