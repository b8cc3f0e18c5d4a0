package clientip

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// peek returns what has arrived and stays in the socket: nothing when that is nothing,
// also when nothing more will come. The error is ErrGone when the client has reset the
// connection.
func peek(fd int, buffer []byte) ([]byte, error) {
	n, err := receive(fd, buffer, unix.MSG_PEEK)
	if err == unix.EAGAIN {
		return nil, nil
	}
	return buffer[:n], err
}

// discard reads as many bytes as buffer has, which have arrived, and no more.
func discard(fd int, buffer []byte) error {
	for len(buffer) > 0 {
		n, err := receive(fd, buffer, 0)
		if err != nil || n == 0 {
			return ErrGone
		}
		buffer = buffer[n:]
	}
	return nil
}

// receive is recv(2). It never waits, so the system call is a raw one, as the others
// of the straight line are (package master, acceptor.go).
func receive(fd int, buffer []byte, flags uintptr) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(buffer))), uintptr(len(buffer)), flags|unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EAGAIN:
			return 0, errno
		case unix.EINTR:
		default:
			return 0, ErrGone // ECONNRESET, ETIMEDOUT, … (man 7 tcp)
		}
	}
}
