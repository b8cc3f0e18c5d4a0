package bindswap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/link/seccomp"
)

// handle decides what happens to a call, and answers it. A caller that ends meanwhile needs no
// answer: then answering fails, which does no harm.
func (l *Link) handle(n *seccomp.Notification) {
	caller := n.Caller()
	switch n.Call() {
	case unix.SYS_BIND:
		l.handleBind(n, caller)
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

func (l *Link) handleBind(n *seccomp.Notification, caller seccomp.Caller) {
	ln, err := l.substituteFor(n, caller)
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
		l.AnswerUnknown(n.ID, err)
	case ln == nil:
		l.Notifs.Continue(n.ID)
	default:
		l.Notifs.Answer(n.ID, l.swap(n, caller, ln))
	}
}

// substituteFor returns the listener that is to take the place of the socket in a call of bind, or nil.
// The error is a *listening.NarrowerError if it must not, a *followError, or says that nobody knows.
func (l *Link) substituteFor(n *seccomp.Notification, caller seccomp.Caller) (*listener, error) {
	bound, family, ok, err := caller.BindAddress(n)
	if err != nil || !ok {
		return nil, err
	}
	ln := l.choose(foreign.Address{AddrPort: bound})
	follows := l.follow != nil && bound.Port() != 0 && (ln == nil || !ln.isAt(bound))
	if ln == nil && !follows {
		l.NoteOwnAddress(bound, caller)
		return nil, nil
	}
	if ok, err := caller.IsTCP(family); err != nil || !ok {
		l.NoteOwnAddress(bound, caller)
		return nil, err
	}
	if follows {
		at, err := l.followTo(bound, family == unix.AF_INET6 && caller.OnlyIPv6())
		if at != nil || err != nil {
			return at, err
		}
		if ln == nil {
			l.NoteOwnAddress(bound, caller)
			return nil, nil
		}
	}
	return l.fitted(ln, bound, family)
}

// fitted returns what a server gets that binds where a listener fits: the listener, one of IPv4 alone, or a
// *listening.NarrowerError.
func (l *Link) fitted(ln *listener, bound netip.AddrPort, family uint16) (*listener, error) {
	if !ln.taken {
		if err := listening.Narrower(bound, ln.AddrPort); err != nil {
			return nil, err
		}
	}
	if family == unix.AF_INET && ln.Addr().Is6() {
		return l.onlyIPv4(ln), nil
	}
	return ln, nil
}

// swap puts a duplicate of the listener in the socket's place, and returns the answer to the call.
func (l *Link) swap(n *seccomp.Notification, caller seccomp.Caller, ln *listener) unix.Errno {
	flags := caller.Flags()
	errno := unix.EBADF // if the listener is closed
	sock.Control(ln.file, func(fd int) error {
		if flags&unix.O_NONBLOCK != 0 {
			unix.SetNonblock(fd, true)
		}
		errno = l.ReplaceSocket(n, caller, fd, flags&unix.O_CLOEXEC != 0)
		return nil
	})
	if errno == 0 {
		l.markTaken(ln, caller.TID)
	} else if l.Notifs.StillValid(n.ID) {
		l.Leave(fmt.Errorf("process %d cannot be given the slot's listener: %w", caller.TID, os.NewSyscallError("ioctl", errno)))
	}
	return errno
}
