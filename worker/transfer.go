package worker

import (
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a connection's descriptor in Go's poller.
type socket struct {
	*os.File
	raw syscall.RawConn
}

// openSocket takes ownership of a non-blocking descriptor.
func openSocket(fd int) socket {
	file := os.NewFile(uintptr(fd), "tcp")
	raw, _ := file.SyscallConn() // no error: there is a file
	return socket{file, raw}
}

// maxTransfer is the most that one raw system call moves: meanwhile the runtime can neither stop the goroutine nor go on without its
// thread. It takes some 20 µs.
const maxTransfer = 64 << 10

// Read reads as the file does, but tells Go's scheduler nothing of its system call, which does not wait, whatever others have done to
// the socket (MSG_DONTWAIT).
//
// An ordinary call wakes the runtime's monitor thread whenever the process was idle before (runtime.sysmon), which then polls
// every 20 µs: with a few requests at a time, a fifth of all that a worker does.
func (s *socket) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return s.File.Read(b)
	}
	t := newTransfer(b)
	defer t.free()
	err := s.raw.Read(t.receive)
	switch {
	case err != nil:
		return 0, err
	case t.err != 0:
		return 0, t.err
	case t.n == 0:
		return 0, io.EOF
	}
	return t.n, nil
}

// Write writes as the file does, in the way of Read, unless it is much.
func (s *socket) Write(b []byte) (int, error) {
	if len(b) == 0 || len(b) > maxTransfer {
		return s.File.Write(b)
	}
	t := newTransfer(b)
	defer t.free()
	err := s.raw.Write(t.send)
	if err == nil && t.err != 0 {
		err = t.err
	}
	return t.n, err
}

// transfer is a Read or a Write. It is used again and again, so that these allocate nothing.
type transfer struct {
	buffer  []byte
	n       int // bytes that were moved
	err     syscall.Errno
	receive func(fd uintptr) (done bool)
	send    func(fd uintptr) (done bool)
}

var transfers = sync.Pool{New: func() any {
	t := new(transfer)
	t.receive, t.send = t.receiveSome, t.sendAll
	return t
}}

func newTransfer(b []byte) *transfer {
	t := transfers.Get().(*transfer)
	t.buffer, t.n, t.err = b, 0, 0
	return t
}

func (t *transfer) free() {
	t.buffer = nil
	transfers.Put(t)
}

func (t *transfer) receiveSome(fd uintptr) bool {
	t.n, t.err = recv(fd, &t.buffer[0], min(len(t.buffer), maxTransfer), 0)
	return t.err != unix.EAGAIN
}

func (t *transfer) sendAll(fd uintptr) bool {
	for t.n < len(t.buffer) {
		rest := t.buffer[t.n:]
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			t.n += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			t.err = errno
			return true
		}
	}
	return true
}
