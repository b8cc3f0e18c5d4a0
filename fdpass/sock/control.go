package sock

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Control calls f with the descriptor of a file, connection or listener, which stays open until f returns. It
// returns f's error, or why f was not called: os.ErrClosed, net.ErrClosed, or what says that there is no file.
//
// (*os.File).Fd would have switched O_NONBLOCK off, which belongs to the socket and not to the descriptor: for all
// processes that share it.
func Control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return ControlRaw(raw, f)
}

// ControlRaw is Control for what SyscallConn has returned already.
func ControlRaw(raw syscall.RawConn, f func(fd int) error) (err error) {
	controlErr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	switch {
	case controlErr == nil:
		return err
	case errors.Is(controlErr, net.ErrClosed), errors.Is(controlErr, unix.EINVAL):
		return controlErr
	default:
		return os.ErrClosed // a file's only error, which package os does not export
	}
}

// ErrNotPolled: a read would hold its thread, and whatever is locked, until something comes.
var ErrNotPolled = errors.New("the kernel does not watch it (epoll_ctl): there is no memory, or no space left, since this user's processes watch as many files as fs.epoll.max_user_watches allows")

// Polled returns ErrNotPolled if a file that could be waited for is not in Go's poller: os.NewFile and os.Pipe say nothing if that fails.
func Polled(file *os.File) error {
	if err := file.SetDeadline(time.Time{}); errors.Is(err, os.ErrNoDeadline) {
		return ErrNotPolled
	}
	return nil
}

// Duplicate returns another descriptor, close-on-exec, that the caller owns.
func Duplicate(c syscall.Conn) (fd int, err error) {
	fd = -1
	err = Control(c, func(own int) (err error) {
		fd, err = DuplicateFD(own)
		return err
	})
	return fd, err
}

// DuplicateFD borrows a descriptor and returns another one, close-on-exec, that the caller owns.
func DuplicateFD(fd int) (int, error) {
	const least = 3 // not that of a standard stream, should one be closed
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, least)
	return fd, os.NewSyscallError("fcntl", err)
}

// Inode returns the number by which the kernel knows a socket, as /proc/PID/fd shows it.
func Inode(c syscall.Conn) (inode uint64, err error) {
	err = Control(c, func(fd int) (err error) {
		inode, err = InodeFD(fd)
		return err
	})
	return inode, err
}

// InodeFD is Inode of a descriptor that it borrows.
func InodeFD(fd int) (uint64, error) {
	var stat unix.Stat_t
	err := unix.Fstat(fd, &stat)
	return stat.Ino, os.NewSyscallError("fstat", err)
}

// StopLingering makes the last close of a socket not wait (SO_LINGER, man 7 socket). It does nothing to what is no
// socket. The call is raw, since the straight line makes it for each connection and it never waits: an ordinary one would
// wake the runtime's monitor thread, which costs a third of all that the master does.
func StopLingering(fd int) {
	setLinger(fd, unix.Linger{})
}

// ResetOnClose makes the last close of a connection reset it, and not wait. Its peer gets no byte of what is unsent. The call is
// raw, as StopLingering's.
func ResetOnClose(fd int) { setLinger(fd, unix.Linger{Onoff: 1}) }

func setLinger(fd int, value unix.Linger) {
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
}

// Option borrows a socket and returns an option that is a number. The call is raw, as in StopLingering.
func Option(fd, level, option int) (int, error) {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	if _, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return 0, os.NewSyscallError("getsockopt", errno)
	}
	return int(value), nil
}

// Cookie borrows a socket and returns what no other socket since the start of this machine has, or 0 if it is none. The call is
// raw, as in StopLingering.
func Cookie(fd int) (cookie uint64) {
	size := uint32(unsafe.Sizeof(cookie))
	unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_COOKIE, uintptr(unsafe.Pointer(&cookie)), uintptr(unsafe.Pointer(&size)), 0)
	return cookie
}

// SetNonblock borrows a socket and makes it non-blocking, for all processes that share it. The call is raw, as in
// StopLingering, and one: a socket has no other flags that are worth to be kept (man 2 fcntl, F_SETFL).
func SetNonblock(fd int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK); errno != 0 {
		return os.NewSyscallError("fcntl", errno)
	}
	return nil
}
