package worker

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"reflect"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxMove is the most that one system call is asked to move.
const maxMove = 4 << 20

// ReadFrom sends all that r has. Data that is in a regular file or comes from another
// TCP connection is moved by the kernel without passing through this process, as a
// *net.TCPConn does it: net/http serves files that way.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	n, done, err := zeroCopy(c, r)
	if !done {
		var copied int64
		copied, err = io.Copy(struct{ io.Writer }{c}, r)
		n += copied
	}
	return n, c.opError("readfrom", err)
}

// WriteTo receives until end of file, into w. To another TCP connection the kernel
// moves it.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	n, done, err := zeroCopy(w, c)
	if !done {
		var copied int64
		copied, err = io.Copy(w, struct{ io.Reader }{c})
		n += copied
	}
	return n, c.opError("writeto", err)
}

// zeroCopy moves what r has, or what an io.LimitedReader allows of it. Unless it is
// done, the rest is to be copied.
func zeroCopy(w io.Writer, r io.Reader) (n int64, done bool, err error) {
	dst, ok := rawTCP(w)
	if !ok {
		return 0, false, nil
	}
	remain := int64(math.MaxInt64)
	if limited, ok := r.(*io.LimitedReader); ok {
		r, remain = limited.R, limited.N
		defer func() { limited.N -= n }()
	}
	if src, ok := rawRegular(r); ok {
		return sendfile(dst, src, remain)
	}
	if src, ok := rawTCP(r); ok {
		return splice(dst, src, remain)
	}
	return 0, false, nil
}

// rawTCP gives access to a TCP connection of package net or of this one. Types that
// embed one are not taken, since they may read and write otherwise; io.Copy hides
// WriteTo of a *net.TCPConn in such a type, but that is package net's own.
func rawTCP(v any) (syscall.RawConn, bool) {
	switch v.(type) {
	case *Conn, *net.TCPConn:
	default:
		if t := reflect.TypeOf(v); t == nil || t.String() != "net.tcpConnWithoutWriteTo" {
			return nil, false
		}
	}
	raw, err := v.(syscall.Conn).SyscallConn()
	return raw, err == nil
}

// rawRegular gives access to a regular file: an *os.File, or the type in which
// io.Copy hides its WriteTo.
func rawRegular(r io.Reader) (syscall.RawConn, bool) {
	file, ok := r.(interface {
		fs.File
		syscall.Conn
	})
	if !ok {
		return nil, false
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, false
	}
	raw, err := file.SyscallConn()
	return raw, err == nil
}

// sendfile sends a file from its offset on (man 2 sendfile).
func sendfile(dst, src syscall.RawConn, remain int64) (n int64, done bool, err error) {
	controlErr := src.Control(func(file uintptr) {
		for n < remain {
			size := int(min(remain-n, maxMove))
			var sent int
			sent, err = when(dst.Write, "sendfile", func(fd int) (int, error) {
				return unix.Sendfile(fd, int(file), nil, size)
			})
			if err != nil || sent == 0 {
				break
			}
			n += int64(sent)
		}
	})
	if controlErr != nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return n, false, nil // closed, which reading tells; or a file system without it
	}
	return n, true, err
}

// splice moves bytes from one connection to another through a pipe, which is empty
// whenever more is taken from the source (man 2 splice). As with any copying, what
// was taken when the destination fails is lost. A larger pipe moved nothing faster,
// and all pipes of a user share a quota (man 7 pipe, pipe-user-pages-soft).
func splice(dst, src syscall.RawConn, remain int64) (n int64, done bool, err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, false, nil
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	for n < remain {
		size := int(min(remain-n, maxMove))
		taken, err := when(src.Read, "splice", func(fd int) (int, error) {
			moved, err := unix.Splice(fd, nil, pipe[1], nil, size, unix.SPLICE_F_NONBLOCK)
			return int(moved), err
		})
		if errors.Is(err, unix.EINVAL) {
			return n, false, nil // not for this kind of socket
		}
		if err != nil || taken == 0 {
			return n, true, err
		}
		for taken > 0 {
			given, err := when(dst.Write, "splice", func(fd int) (int, error) {
				moved, err := unix.Splice(pipe[0], nil, fd, nil, taken, unix.SPLICE_F_NONBLOCK)
				return int(moved), err
			})
			if err != nil {
				return n, true, err
			}
			taken -= given
			n += int64(given)
		}
	}
	return n, true, nil
}

// when makes a system call that moves bytes, as soon as wait, which is the Read or
// Write of a raw connection, finds it possible.
func when(wait func(func(uintptr) bool) error, call string, move func(fd int) (int, error)) (n int, err error) {
	var callErr error
	err = wait(func(fd uintptr) bool {
		for {
			n, callErr = move(int(fd))
			if callErr != unix.EINTR {
				return callErr != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = os.NewSyscallError(call, callErr)
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}
