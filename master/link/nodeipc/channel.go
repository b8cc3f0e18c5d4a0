package nodeipc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
)

// maxLine is the longest message of a worker that is read: Node's own are short, and longer ones of the
// program's are skipped.
const maxLine = 16 << 20

// maxRest bounds how often to read what a worker has left behind: more than a socket holds.
const maxRest = 1024

// channel is the master's end. Sending does not wait: the sender holds the link's
// lock and keeps what could not be sent.
type channel struct {
	file *os.File
	raw  syscall.RawConn
	in   []byte // received, and not a whole line yet
	skip bool   // the rest of a line that is too long

	receiving receiving
	sending   sending
	came      int        // a descriptor that the worker has sent, of whose message the end is not there yet; -1: none
	bin       fdpass.Bin // for descriptors that nobody wants
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
	theirs = os.NewFile(uintptr(fds[1]), "node channel of the worker")
	if ours, err = newChannel(os.NewFile(uintptr(fds[0]), "node channel")); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// newChannel takes ownership of the master's end, which is non-blocking.
func newChannel(file *os.File) (*channel, error) {
	raw, err := file.SyscallConn()
	if err == nil {
		err = sock.Polled(file)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &channel{file: file, raw: raw, receiving: newReceiving(), came: -1}, nil
}

// Errors of sending.
var (
	errFull = errors.New("nodeipc: channel full")
	// errNoMemory: the kernel has none for a message, whatever room there is.
	errNoMemory = errors.New("nodeipc: no memory for a message")
	// errInFlight: there is room, but not for a descriptor (fdpass.ErrInFlight).
	errInFlight = errors.New("nodeipc: too many descriptors in flight")
	errGone     = errors.New("nodeipc: channel closed")
)

// send sends as much of text as there is room for, and returns how much that was. fd,
// if it is not -1, rides on the first byte; it is borrowed.
func (c *channel) send(text []byte, fd int) (n int, err error) {
	ctlErr := c.sending.send(c.raw, text, fd)
	n, err = c.sending.n, c.sending.err
	switch {
	case ctlErr != nil:
		return 0, errGone
	case err == nil:
		return n, nil
	case err == unix.EAGAIN:
		return 0, errFull
	case err == unix.ENOBUFS, err == unix.ENOMEM:
		return 0, errNoMemory
	case err == unix.ETOOMANYREFS:
		return 0, errInFlight
	case err == unix.EPIPE, err == unix.ECONNRESET, err == unix.ENOTCONN:
		return 0, errGone
	default:
		return 0, fmt.Errorf("nodeipc: %w", os.NewSyscallError("sendmsg", err))
	}
}

// sendWith is send with a file, or with none; it borrows the file.
func (c *channel) sendWith(text []byte, file *os.File) (n int, err error) {
	if file == nil {
		return c.send(text, -1)
	}
	err = errGone // if the file is closed
	sock.Control(file, func(fd int) error {
		n, err = c.send(text, fd)
		return nil
	})
	return n, err
}

// whenRoom calls try now and whenever there is room again, until it returns true.
func (c *channel) whenRoom(try func() (done bool)) error {
	return c.raw.Write(func(uintptr) bool { return try() })
}

// receive waits for bytes and calls handle for each line, with reexec.Lock held for reading since
// before they left the socket. Before each look it calls look, without. handle may take the descriptor that came with its line. It returns io.EOF when the worker has closed its end, and errGone after interrupt.
func (c *channel) receive(look func(), handle func(line []byte)) error {
	var n int
	var err error
	waitErr := c.raw.Read(func(s uintptr) bool {
		look()
		reexec.Lock.RLock()
		if n, err = c.read(s); err == unix.EAGAIN {
			reexec.Lock.RUnlock()
			return false
		}
		return true
	})
	if waitErr != nil {
		return errGone
	}
	defer reexec.Lock.RUnlock()
	switch {
	case err == unix.ECONNRESET: // it had not read all; what it had sent was read before
		return io.EOF
	case err != nil:
		return os.NewSyscallError("recvmsg", err)
	case n == 0:
		return io.EOF
	}
	c.split(n, handle)
	return nil
}

// closeWrite says that no more messages follow.
func (c *channel) closeWrite() {
	c.raw.Control(func(s uintptr) { unix.Shutdown(int(s), unix.SHUT_WR) })
}

// interrupt makes receive and whenRoom return.
func (c *channel) interrupt() { c.file.SetDeadline(time.Unix(1, 0)) }

// rest is receive, without waiting, for all that is there. Call it after interrupt. Nothing comes
// behind it: else closing the channel would close descriptors with it, and wait for them (fdpass.Bin).
func (c *channel) rest(handle func(line []byte)) {
	c.raw.Control(func(s uintptr) { unix.Shutdown(int(s), unix.SHUT_RD) })
	for range maxRest {
		var n int
		var err error
		if ctlErr := c.raw.Control(func(s uintptr) { n, err = c.read(s) }); ctlErr != nil || err != nil || n <= 0 {
			return
		}
		c.split(n, handle)
	}
}

// read fills the buffer, once.
func (c *channel) read(s uintptr) (n int, err error) {
	n, fds, err := c.receiving.recvmsg(s)
	if len(fds) > 0 {
		c.discard(c.take())
		c.came = fds[0] // Node sends one at a time, and waits for the answer
		c.bin.Discard(fds[1:]...)
	}
	return n, err
}

// take returns the descriptor that came, which the caller owns; -1: none.
func (c *channel) take() int {
	fd := c.came
	c.came = -1
	return fd
}

// discard takes ownership of a descriptor, or of none.
func (c *channel) discard(fd int) {
	if fd >= 0 {
		c.bin.Discard(fd)
	}
}

// close takes the channel apart.
func (c *channel) close() {
	c.discard(c.take())
	c.file.Close()
}

// split calls handle for each line that the first n bytes of the buffer complete.
func (c *channel) split(n int, handle func(line []byte)) {
	if !c.skip {
		c.in = append(c.in, c.receiving.buffer[:n]...)
	}
	if bytes.IndexByte(c.receiving.buffer[:n], '\n') < 0 { // so a long line is not searched again and again
		c.limit()
		return
	}
	rest := c.in
	if c.skip {
		_, rest, _ = bytes.Cut(c.receiving.buffer[:n], []byte("\n"))
		c.skip = false
	}
	for {
		line, behind, found := bytes.Cut(rest, []byte("\n"))
		if !found {
			break
		}
		handle(line)
		rest = behind
	}
	c.in = append(c.in[:0], rest...)
	c.limit()
}

// limit forgets a line that is too long.
func (c *channel) limit() {
	if len(c.in) > maxLine {
		c.in, c.skip = nil, true
	}
}
