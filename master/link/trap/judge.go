package trap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/listening"
)

// judge decides what happens to a call, and answers it. A caller that ends meanwhile needs no
// answer: then answering fails, and nobody minds.
func (l *Link) judge(n *Notification) {
	caller := Caller{int(n.PID), int(int32(n.Args[0]))}
	switch launch.Call(n.Number) {
	case unix.SYS_BIND:
		ln, err := l.standIn(n, caller)
		var narrower *listening.NarrowerError
		var cannot *followError
		switch {
		case !l.asked.StillValid(n.ID):
			// It was not this process that we have looked into.
		case errors.As(err, &cannot):
			l.log.Error("cannot listen where a worker does", "listen", cannot.at.String(), "err", cannot.err)
			l.asked.Answer(n.ID, cannot.errno())
		case errors.As(err, &narrower):
			l.refuse(n.ID, err)
		case err != nil:
			l.cannotSee(err)
			l.asked.Continue(n.ID)
		case ln == nil:
			l.asked.Continue(n.ID)
		default:
			l.swap(n, caller, ln)
		}
	case unix.SYS_LISTEN, unix.SYS_SHUTDOWN:
		if l.isOurs(listening.Socket(caller.TID, caller.FD)) {
			l.asked.Answer(n.ID, 0)
		} else {
			l.asked.Continue(n.ID)
		}
	default:
		l.asked.Continue(n.ID)
	}
}

// standIn returns the listener that is to take the place of the socket in a call of bind, or nil.
// The error is a *listening.NarrowerError if it must not, a *followError, or says that the process must
// not be looked into.
func (l *Link) standIn(n *Notification, caller Caller) (*listener, error) {
	bound, family, ok, err := caller.BindAddress(n)
	if err != nil || !ok {
		return nil, err
	}
	ln := l.choose(Address{AddrPort: bound})
	follows := l.follow != nil && bound.Port() != 0 && !ln.serves(bound)
	if ln == nil && !follows {
		l.noteOwn(bound, caller)
		return nil, nil
	}
	if ok, err := caller.IsTCP(family); err != nil || !ok {
		l.noteOwn(bound, caller)
		return nil, err
	}
	if follows {
		at, err := l.followTo(bound, family == unix.AF_INET6 && caller.OnlyIPv6())
		if at != nil || err != nil {
			return at, err
		}
		if ln == nil {
			l.noteOwn(bound, caller)
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
func (l *Link) swap(n *Notification, caller Caller, ln *listener) {
	raw, err := ln.file.SyscallConn()
	if err != nil {
		l.leave(fmt.Errorf("trap: the slot's listener: %w", err))
		return
	}
	flags := caller.Flags()
	errno := unix.EBADF // if the listener is closed
	raw.Control(func(fd uintptr) {
		if flags&unix.O_NONBLOCK != 0 {
			unix.SetNonblock(int(fd), true)
		}
		errno = l.substitute(n, caller, int(fd), flags&unix.O_CLOEXEC != 0)
	})
	if errno != 0 && l.asked.StillValid(n.ID) {
		l.leave(fmt.Errorf("trap: the slot's listener cannot be given to process %d: %w", caller.TID, os.NewSyscallError("ioctl", errno)))
	}
	if errno == 0 {
		l.took(ln, caller.TID)
	}
	l.asked.Answer(n.ID, errno)
}
