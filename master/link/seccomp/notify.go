package seccomp

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
)

// Constants of linux/seccomp.h that x/sys lacks. Architectures with other directions and sizes than
// most have no filter (arch).
const (
	ioctlIDValid = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	ioctlAddFD   = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD, since Linux 5.9
)

// Notification is struct seccomp_notif: a system call that waits for our answer.
type Notification struct {
	ID     uint64
	PID    uint32 // of the thread
	Flags  uint32
	Number int32 // see Call
	Arch   uint32
	IP     uint64
	Args   [6]uint64
}

// Caller returns the thread that waits, and the descriptor that is the call's first argument.
func (n *Notification) Caller() Caller { return Caller{int(n.PID), int(int32(n.Args[0]))} }

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32 // negative
	flags uint32
}

// addition is struct seccomp_notif_addfd.
type addition struct {
	id     uint64
	flags  uint32
	source uint32
	number uint32
	opened uint32 // flags of the new descriptor
}

// Notifications is the descriptor on which a filter asks. Its users are the processes that have
// the filter.
type Notifications struct {
	file *os.File // non-blocking
	raw  interface {
		Control(func(uintptr)) error
		Read(func(uintptr) bool) error
	}
}

// NewNotifications takes ownership of file, which must be non-blocking.
func NewNotifications(file *os.File) (*Notifications, error) {
	raw, err := file.SyscallConn()
	if err == nil {
		err = sock.Polled(file)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("receiving seccomp notifications: %w", err)
	}
	return &Notifications{file, raw}, nil
}

// File returns the descriptor, which n goes on owning.
func (n *Notifications) File() *os.File { return n.file }

// Close ends Next. Calls that wait for an answer, and all later ones, fail (ENOSYS).
func (n *Notifications) Close() { n.file.Close() }

// SetDeadline ends Next with os.ErrDeadlineExceeded at a time, also a Next that is waiting. Zero: never.
func (n *Notifications) SetDeadline(at time.Time) { n.file.SetReadDeadline(at) }

// errorPause is the time between two looks while Go's poller does not wait for us.
const errorPause = time.Millisecond

// Next waits for a notification. If there is one it returns nil with reexec.Lock locked for reading: the
// caller unlocks it when the notification is answered, or noted. It fails with os.ErrDeadlineExceeded at the
// deadline, and now and then without: call it again. It fails with another error when no process has the
// filter any more, or after Close.
//
// The kernel reports POLLERR of this descriptor when a signal comes in while it looks at it
// (seccomp_notify_poll), which means nothing. But Go's poller, once told so, refuses to wait
// until it has been told something else.
func (n *Notifications) Next(got *Notification) error {
	for {
		var errno unix.Errno
		took := func(fd uintptr) bool {
			reexec.Lock.RLock()
			if errno = receive(fd, got); errno != 0 {
				reexec.Lock.RUnlock()
			}
			return errno != unix.EWOULDBLOCK
		}
		err := n.raw.Read(took)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
			done := false
			if err := n.raw.Control(func(fd uintptr) { done = took(fd) }); err != nil {
				return err
			}
			if err = nil; !done {
				time.Sleep(errorPause)
				return os.ErrDeadlineExceeded
			}
		}
		switch {
		case err != nil:
			return err
		case errno == unix.ENOENT || errno == unix.EINTR:
			// The caller was killed or interrupted meanwhile.
		case errno != 0:
			return os.NewSyscallError("ioctl", errno)
		default:
			return nil
		}
	}
}

// receive takes a notification, without waiting. EWOULDBLOCK says that there is none.
func receive(fd uintptr, got *Notification) unix.Errno {
	// Asked first: on some kernels the ioctl waits, whatever O_NONBLOCK says.
	poll, none := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}, unix.Timespec{}
	unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&none)), 0, 0, 0)
	switch revents := poll.Revents; {
	case revents&unix.POLLIN != 0:
	case revents&unix.POLLHUP != 0: // since Linux 5.9
		return unix.ENOTCONN
	case revents != 0:
		return unix.EINTR // look again
	default:
		return unix.EWOULDBLOCK
	}
	*got = Notification{} // the kernel demands zeros (EINVAL)
	return ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(got))
}

// StillValid tells whether the call waits still: only then the process that we have looked into was
// the caller's, and not a later one with the same pid.
func (n *Notifications) StillValid(id uint64) bool {
	return n.control(ioctlIDValid, unsafe.Pointer(&id)) == 0
}

// Continue lets the kernel do the call.
func (n *Notifications) Continue(id uint64) {
	n.control(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&response{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}))
}

// Answer has the call succeed with 0, or fail. The caller may be gone.
func (n *Notifications) Answer(id uint64, errno unix.Errno) {
	n.control(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&response{id: id, errno: -int32(errno)}))
}

// Return has the call succeed with a value. It fails if the caller is gone.
func (n *Notifications) Return(id uint64, value int) unix.Errno {
	return n.control(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&response{id: id, value: int64(value)}))
}

// AddFD adds a duplicate of source to the caller's descriptors, and returns its number there. It
// waits for the caller to be woken, and a signal of ours does no harm (see replace). The call
// goes on waiting: only Return tells the caller of the descriptor. Under a filter other than BindAccept a
// signal could interrupt the call in between, and the caller would never hear of it.
func (n *Notifications) AddFD(id uint64, source int, closeOnExec bool) (number int, errno unix.Errno) {
	a := addition{id: id, source: uint32(source), opened: opened(closeOnExec)}
	if n.raw.Control(func(fd uintptr) { number, errno = add(fd, &a) }) != nil {
		return 0, unix.EBADF // closed
	}
	return number, errno
}

// replace puts a duplicate of source in the place of a descriptor of the caller. The call goes
// on waiting: answered in the same step, it could return something else (seen on Linux 6.18, when
// a signal comes in between).
func (n *Notifications) replace(id uint64, source, number int, closeOnExec bool) (errno unix.Errno) {
	const set = unix.SECCOMP_ADDFD_FLAG_SETFD
	a := addition{id: id, flags: set, source: uint32(source), number: uint32(number), opened: opened(closeOnExec)}
	if n.raw.Control(func(fd uintptr) { _, errno = add(fd, &a) }) != nil {
		return unix.EBADF // closed
	}
	return errno
}

func opened(closeOnExec bool) uint32 {
	if closeOnExec {
		return unix.O_CLOEXEC
	}
	return 0
}

func (n *Notifications) control(request uint, arg unsafe.Pointer) (errno unix.Errno) {
	if n.raw.Control(func(fd uintptr) { errno = ioctl(fd, request, arg) }) != nil {
		return unix.EBADF // closed
	}
	return errno
}

// ioctl is a request that does not wait. It is raw: an ordinary call wakes the runtime's monitor thread.
func ioctl(fd uintptr, request uint, arg unsafe.Pointer) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
		if errno != unix.EINTR || request == unix.SECCOMP_IOCTL_NOTIF_RECV {
			return errno
		}
	}
}

// add waits for the caller's thread to run.
func add(fd uintptr, a *addition) (number int, errno unix.Errno) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, ioctlAddFD, uintptr(unsafe.Pointer(a)))
		if errno != unix.EINTR {
			return int(r), errno
		}
	}
}
