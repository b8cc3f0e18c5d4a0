package acceptinject

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/link/seccomp"
)

// errShut: the worker gets no more connections then.
var errShut = errors.New("the worker has closed its listening sockets")

// handleBind answers a call of bind: a socket that would listen on a balancer's address becomes a decoy.
func (l *Link) handleBind(n *seccomp.Notification, caller seccomp.Caller) {
	wanted, family, err := l.isOurs(n, caller)
	var narrower *listening.NarrowerError
	switch {
	case !l.Notifs.StillValid(n.ID):
		return // it was not this process that we have looked into
	case errors.As(err, &narrower):
		l.stop()
		l.Refuse(n.ID, err)
		return
	case err != nil:
		l.AnswerUnknown(n.ID, err)
		return
	case !wanted:
		l.Notifs.Continue(n.ID)
		return
	}
	l.mu.Lock()
	full := len(l.decoys) >= maxDecoys
	l.mu.Unlock()
	if full {
		l.Notifs.Answer(n.ID, unix.EADDRINUSE)
		return
	}
	d, err := openDecoy(family)
	if err != nil {
		l.leave(err)
		l.Notifs.Continue(n.ID)
		return
	}
	l.Notifs.Answer(n.ID, l.substitute(n, caller, d))
}

// substitute puts a decoy, of which it takes ownership, in the socket's place.
func (l *Link) substitute(n *seccomp.Notification, caller seccomp.Caller, d *decoy) unix.Errno {
	flags := caller.Flags()
	unix.SetNonblock(d.fd, flags&unix.O_NONBLOCK != 0)
	errno := l.ReplaceSocket(n, caller, d.fd, flags&unix.O_CLOEXEC != 0)
	if errno == 0 {
		l.AddRoot(caller.TID)
		l.mu.Lock()
		l.decoys = append(l.decoys, d)
		l.mu.Unlock()
		return 0
	}
	d.close()
	if l.Notifs.StillValid(n.ID) {
		l.leave(fmt.Errorf("process %d cannot be given a listener: %w", caller.TID, os.NewSyscallError("ioctl", errno)))
	}
	return errno
}

// isOurs tells whether a call of bind is for a balancer's address. The error is a
// *listening.NarrowerError if the address takes fewer clients than the balancer's, or says that nobody knows.
func (l *Link) isOurs(n *seccomp.Notification, caller seccomp.Caller) (ours bool, family uint16, err error) {
	var narrower error
	bound, family, ok, err := caller.BindAddress(n)
	if err != nil || !ok {
		return false, 0, err
	}
	for _, at := range l.addresses {
		if at.Fit(foreign.Address{AddrPort: bound}) == 0 {
			continue
		}
		if !ours {
			if ours, err = caller.IsTCP(family); err != nil || !ours {
				return false, 0, err
			}
		}
		narrower = listening.Narrower(bound, at.AddrPort)
		if narrower == nil {
			return true, family, nil
		}
	}
	return ours, family, narrower
}

// decoyOf returns the decoy that a descriptor is, or nil.
func (l *Link) decoyOf(caller seccomp.Caller) *decoy {
	l.mu.Lock()
	none := len(l.decoys) == 0
	l.mu.Unlock()
	if none {
		return nil
	}
	inode := listening.Socket(caller.TID, caller.FD)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.decoys {
		if d.inode == inode {
			return d
		}
	}
	return nil
}

// shutDown is for a decoy whose receiving side is shut down: calls that wait there fail, as with
// any listener, and no other will wait there.
func (l *Link) shutDown(d *decoy) {
	l.mu.Lock()
	var gone []acceptCall
	kept := l.waiting[:0]
	for _, call := range l.waiting {
		if call.decoy == d {
			gone = append(gone, call)
		} else {
			kept = append(kept, call)
		}
	}
	l.waiting = kept
	last := l.remove(d)
	l.mu.Unlock()
	for _, call := range gone {
		l.Notifs.Answer(call.id, unix.EINVAL)
	}
	if last {
		l.leave(errShut)
	}
}

// remove closes and forgets a decoy, and tells whether it was the last. mu is held.
func (l *Link) remove(d *decoy) (last bool) {
	for i := range l.decoys {
		if l.decoys[i] == d {
			l.decoys = append(l.decoys[:i:i], l.decoys[i+1:]...)
			d.close()
			last = len(l.decoys) == 0
			break
		}
	}
	l.wakeup()
	return last
}

// inodes returns the decoys' inodes.
func (l *Link) inodes() (all []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.decoys {
		all = append(all, d.inode)
	}
	return all
}
