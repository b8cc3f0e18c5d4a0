package bindswap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/link/seccomp"
)

// handle decides what happens to a call, and answers it. A caller that ends meanwhile needs no
// answer: then answering fails, and nobody minds.
func (l *Link) handle(n *seccomp.Notification) {
	caller := n.Caller()
	switch n.Call() {
	case unix.SYS_BIND:
		ln, err := l.standIn(n, caller)
		var narrower *listening.NarrowerError
		var cannot *followError
		switch {
		case !l.Notifs.StillValid(n.ID):
			// It was not this process that we have looked into.
		case errors.As(err, &cannot):
			l.log.Error("cannot listen where a worker does", "listen", cannot.at.String(), "err", cannot.err)
			l.Notifs.Answer(n.ID, cannot.errno())
		case errors.As(err, &narrower):
			l.Refuse(n.ID, err)
		case err != nil:
			l.CannotSee(err)
			l.Notifs.Continue(n.ID)
		case ln == nil:
			l.Notifs.Continue(n.ID)
		default:
			l.swap(n, caller, ln)
		}
	case unix.SYS_LISTEN, unix.SYS_SHUTDOWN:
		if l.isOurs(listening.Socket(caller.TID, caller.FD)) {
			l.Notifs.Answer(n.ID, 0)
		} else {
			l.Notifs.Continue(n.ID)
		}
	default:
		l.Notifs.Continue(n.ID)
	}
}

// standIn returns the listener that is to take the place of the socket in a call of bind, or nil.
// The error is a *listening.NarrowerError if it must not, a *followError, or says that the process must
// not be looked into.
func (l *Link) standIn(n *seccomp.Notification, caller seccomp.Caller) (*listener, error) {
	bound, family, ok, err := caller.BindAddress(n)
	if err != nil || !ok {
		return nil, err
	}
	ln := l.choose(foreign.Address{AddrPort: bound})
	follows := l.follow != nil && bound.Port() != 0 && !ln.serves(bound)
	if ln == nil && !follows {
		l.NoteOwn(bound, caller)
		return nil, nil
	}
	if ok, err := caller.IsTCP(family); err != nil || !ok {
		l.NoteOwn(bound, caller)
		return nil, err
	}
	if follows {
		at, err := l.followTo(bound, family == unix.AF_INET6 && caller.OnlyIPv6())
		if at != nil || err != nil {
			return at, err
		}
		if ln == nil {
			l.NoteOwn(bound, caller)
			return nil, nil
		}
	}
	if !ln.taken {
		if err := listening.Narrower(bound, ln.AddrPort); err != nil {
			return nil, err
		}
	}
	if family == unix.AF_INET && ln.Addr().Is6() {
		return l.forIPv4(ln), nil
	}
	return ln, nil
}

// swap puts a duplicate of the listener in the socket's place, and the call succeeds.
func (l *Link) swap(n *seccomp.Notification, caller seccomp.Caller, ln *listener) {
	raw, err := ln.file.SyscallConn()
	if err != nil {
		l.Leave(fmt.Errorf("bindswap: the slot's listener: %w", err))
		return
	}
	flags := caller.Flags()
	errno := unix.EBADF // if the listener is closed
	raw.Control(func(fd uintptr) {
		if flags&unix.O_NONBLOCK != 0 {
			unix.SetNonblock(int(fd), true)
		}
		errno = l.ReplaceSocket(n, caller, int(fd), flags&unix.O_CLOEXEC != 0)
	})
	if errno != 0 && l.Notifs.StillValid(n.ID) {
		l.Leave(fmt.Errorf("bindswap: the slot's listener cannot be given to process %d: %w", caller.TID, os.NewSyscallError("ioctl", errno)))
	}
	if errno == 0 {
		l.took(ln, caller.TID)
	}
	l.Notifs.Answer(n.ID, errno)
}
