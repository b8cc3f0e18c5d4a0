package fdpass

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// newInbox returns a file to wait on, in Go's poller, for messages on a socket that is not
// there itself. It is readable when the socket is; the caller owns it.
//
// Go's poller listens for EPOLLOUT, too, and the kernel reports that whenever the other side
// has taken a message. To a master it means nothing, but under load every second of its
// looks into the poller was for that, and each message cost its worker the waking of
// the master, or each hand back the waking of the worker. The file is an epoll (man 7 epoll), which can be in another one, and this
// one is for EPOLLIN alone.
func newInbox(socket syscall.RawConn) (*os.File, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fdpass: %w", os.NewSyscallError("epoll_create1", err))
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN}
	err = sock.ControlRaw(socket, func(socket int) error {
		return os.NewSyscallError("epoll_ctl", unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, socket, &event))
	})
	// Non-blocking, which means nothing to an epoll, is what os.NewFile waits for in the poller.
	err = errors.Join(err, os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("fdpass: %w", err)
	}
	inbox := os.NewFile(uintptr(fd), "inbox of a mailbox")
	if err := sock.Polled(inbox); err != nil {
		inbox.Close()
		return nil, fmt.Errorf("fdpass: %w", err)
	}
	return inbox, nil
}
