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
func (l *Link) judge(n *notification) {
	who := target{int(n.pid), int(int32(n.args[0]))}
	switch launch.Call(n.number) {
	case unix.SYS_BIND:
		ln, err := l.standIn(n, who)
		var narrower *listening.NarrowerError
		var cannot *followError
		switch {
		case !l.asked.waiting(n.id):
			// It was not this process that we have looked into.
		case errors.As(err, &cannot):
			l.log.Error("cannot listen where a worker does", "listen", cannot.at.String(), "err", cannot.err)
			l.asked.finish(n.id, cannot.errno())
		case errors.As(err, &narrower):
			l.refuse(n.id, err)
		case err != nil:
			l.cannotSee(err)
			l.asked.goOn(n.id)
		case ln == nil:
			l.asked.goOn(n.id)
		default:
			l.swap(n, who, ln)
		}
	case unix.SYS_LISTEN, unix.SYS_SHUTDOWN:
		if l.isOurs(listening.Socket(who.tid, who.fd)) {
			l.asked.finish(n.id, 0)
		} else {
			l.asked.goOn(n.id)
		}
	default:
		l.asked.goOn(n.id)
	}
}

// standIn returns the listener that is to take the place of the socket in a call of bind, or nil.
// The error is a *listening.NarrowerError if it must not, a *followError, or says that the process must
// not be looked into.
func (l *Link) standIn(n *notification, who target) (*listener, error) {
	bound, family, ok, err := who.binds(n)
	if err != nil || !ok {
		return nil, err
	}
	ln := l.choose(address{AddrPort: bound})
	follows := l.follow != nil && bound.Port() != 0 && !ln.serves(bound)
	if ln == nil && !follows {
		l.noteOwn(bound, who)
		return nil, nil
	}
	if ok, err := who.isTCP(family); err != nil || !ok {
		l.noteOwn(bound, who)
		return nil, err
	}
	if follows {
		at, err := l.followTo(bound, family == unix.AF_INET6 && who.onlyIPv6())
		if at != nil || err != nil {
			return at, err
		}
		if ln == nil {
			l.noteOwn(bound, who)
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
func (l *Link) swap(n *notification, who target, ln *listener) {
	raw, err := ln.file.SyscallConn()
	if err != nil {
		l.leave(fmt.Errorf("trap: the slot's listener: %w", err))
		return
	}
	flags := who.flags()
	errno := unix.EBADF // if the listener is closed
	raw.Control(func(fd uintptr) {
		if flags&unix.O_NONBLOCK != 0 {
			unix.SetNonblock(int(fd), true)
		}
		errno = l.substitute(n, who, int(fd), flags&unix.O_CLOEXEC != 0)
	})
	if errno != 0 && l.asked.waiting(n.id) {
		l.leave(fmt.Errorf("trap: the slot's listener cannot be given to process %d: %w", who.tid, os.NewSyscallError("ioctl", errno)))
	}
	if errno == 0 {
		l.took(ln, who.tid)
	}
	l.asked.finish(n.id, errno)
}
