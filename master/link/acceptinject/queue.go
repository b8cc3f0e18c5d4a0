package acceptinject

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// queued is a connection that the worker has not accepted yet.
type queued struct {
	fdpass.Handoff
	family uint16 // of its addresses: AF_INET or AF_INET6
}

// familyOf borrows a connection. It is known although the client has gone.
func familyOf(fd int) uint16 {
	if at, err := sock.Local(fd); err == nil && at.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Where a worker listens on IPv4 and on IPv6, each socket gets what comes by its own family, as from the kernel; else its
// sockets get all. The methods below are of one family then, or of anyFamily. mu is held.
const anyFamily = 0

var (
	oneForAll  = []uint16{anyFamily}
	eachFamily = []uint16{unix.AF_INET, unix.AF_INET6}
)

// families are those that are kept apart.
func (l *Link) families() []uint16 {
	for _, d := range l.decoys {
		if d.family != l.decoys[0].family {
			return eachFamily
		}
	}
	return oneForAll
}

// familyAt is the one of a decoy.
func (l *Link) familyAt(d *decoy) uint16 {
	if len(l.families()) == 1 {
		return anyFamily
	}
	return d.family
}

func isOf(family, want uint16) bool { return want == anyFamily || family == want }

// pop takes the oldest connection for a call at a decoy, if there is one.
func (l *Link) pop(at *decoy) (conn fdpass.Handoff, ok bool) {
	family := l.familyAt(at)
	i := slices.IndexFunc(l.queue, func(q queued) bool { return isOf(q.family, family) })
	if i < 0 {
		return fdpass.Handoff{}, false
	}
	conn = l.queue[i].Handoff
	l.queue = slices.Delete(l.queue, i, i+1)
	l.cancelWakeups(at)
	return conn, true
}

// popWaiting takes the oldest call that waits and for which there is a connection, and that.
func (l *Link) popWaiting() (call acceptCall, conn fdpass.Handoff, ok bool) {
	if len(l.queue) == 0 {
		return call, conn, false
	}
	for i := range l.waiting {
		if conn, ok = l.pop(l.waiting[i].decoy); ok {
			call = l.waiting[i]
			l.waiting = slices.Delete(l.waiting, i, i+1)
			return call, conn, true
		}
	}
	return call, conn, false
}

// queuedFor counts connections that are not accepted yet.
func (l *Link) queuedFor(family uint16) int {
	if family == anyFamily {
		return len(l.queue)
	}
	n := 0
	for i := range l.queue {
		if l.queue[i].family == family {
			n++
		}
	}
	return n
}

// waitingFor counts calls that wait for them.
func (l *Link) waitingFor(family uint16) int {
	if family == anyFamily {
		return len(l.waiting)
	}
	n := 0
	for i := range l.waiting {
		if l.waiting[i].decoy.family == family {
			n++
		}
	}
	return n
}

// decoysFor counts decoys, and those with wake-ups.
func (l *Link) decoysFor(family uint16) (n, woken int) {
	for _, d := range l.decoys {
		if isOf(d.family, family) {
			n++
			if d.woken {
				woken++
			}
		}
	}
	return n, woken
}
