package reuseport

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/sockdiag"
)

// Repaired is what Repair has found: nothing, as a rule. Members are told by their numbers.
type Repaired struct {
	Shut     []int // were shut down; connections that waited there were reset
	Filtered []int // had a socket filter, which may have kept clients away
	Locked   []int // have one that nobody can remove (ErrSpoiled); told each time
	Joined   []Stranger
}

// Stranger is a listener of another process in the kernel's group. The program gives it no
// client, but if the group is left, it gets some.
type Stranger struct{ Inode uint64 }

// Owners returns the processes that have the listener; none if they cannot be seen. It looks at all
// processes.
func (s Stranger) Owners() []Owner {
	owners, _ := holders(map[string]bool{socketLink(s.Inode): true})
	return owners
}

// Repair puts right what processes that have members have done to them, where it concerns others. Members that were
// shut down, as some servers do when they stop, listen again; connections that waited there were reset. Filters and
// other settings that keep clients away are removed, the queue is as long as it was, and the program is attached,
// in whose place there may be another. And Repair counts the sockets that have joined the group or left it. What
// concerns a member alone is for Clean.
//
// Call it whenever a worker has left, and now and then. If several have left their places since
// the last time, it may be that nobody knows the places of the others any more, and the error says
// so.
func (g *Group) Repair() (found Repaired, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return found, nil // nobody is to come any more
	}
	for i, m := range g.members {
		info, err := tcpInfo(m.file)
		if err != nil {
			return found, err
		}
		if info.State != unix.BPF_TCP_LISTEN {
			found.Shut = append(found.Shut, i)
		}
	}
	certain := g.syncSockets(found.Shut...)
	for i, m := range g.members {
		err := control(m.file, func(fd int) error {
			filtered, err := unfilter(fd)
			if filtered {
				found.Filtered = append(found.Filtered, i)
			}
			if errors.Is(err, ErrSpoiled) {
				found.Locked, err = append(found.Locked, i), nil
			}
			return errors.Join(err, passPackets(fd), share(fd), listenAgain(fd, g.bound))
		})
		if err != nil {
			return found, err
		}
		if slices.Contains(found.Shut, i) { // it has joined again, behind the others
			g.sockets = append(g.sockets, m.inode)
		}
	}
	if err := g.attach(); err != nil {
		return found, err
	}
	found.Joined, g.untold = g.untold, nil
	if !certain {
		return found, fmt.Errorf("reuseport: several listeners of %v were shut down or closed at a time by processes that share them; "+
			"clients may be given to other slots than theirs until the master is restarted", g.addr)
	}
	return found, nil
}

// Clean makes a member what it was before any process had it, and blocking or not. Call it when
// none has it any more. The error is ErrSpoiled if that cannot be: then nobody may get it again.
func (g *Group) Clean(i int, blocking bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i < 0 || i >= len(g.members) {
		return fmt.Errorf("reuseport: no member %d", i)
	}
	m := g.members[i]
	return control(m.file, func(fd int) error {
		_, err := unfilter(fd)
		flags := unix.O_NONBLOCK // and no O_ASYNC
		if blocking {
			flags = 0
		}
		_, flagsErr := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
		return errors.Join(err, flagsErr, g.settings.restore(fd))
	})
}

// syncSockets brings sockets up to date with the kernel's group: down are members that have left it.
// It returns false if the places of those that are left cannot be known.
func (g *Group) syncSockets(down ...int) (certain bool) {
	var gone []uint64
	for _, i := range down {
		gone = append(gone, g.members[i].inode)
	}
	joined := g.strangers()
	for _, inode := range g.sockets {
		if !g.isOurs(inode) && joined != nil && !slices.Contains(joined, inode) {
			gone = append(gone, inode)
		}
	}
	joined = slices.DeleteFunc(joined, func(inode uint64) bool { return slices.Contains(g.sockets, inode) })
	g.sockets, certain = afterLeaving(g.sockets, gone)
	g.sockets = append(g.sockets, joined...)
	for _, inode := range joined {
		g.untold = append(g.untold, Stranger{inode})
	}
	return certain
}

// afterLeaving is what becomes of sockets, in the order of their places, when some leave the group: the
// last one takes the place of each (__reuseport_detach_sock). Where more than one has left, the
// order in which they did matters, unless they were the last ones.
func afterLeaving(sockets, gone []uint64) (left []uint64, certain bool) {
	left = slices.Clone(sockets)
	tail := left[max(0, len(left)-len(gone)):]
	certain = len(gone) < 2 || !slices.ContainsFunc(tail, func(inode uint64) bool { return !slices.Contains(gone, inode) })
	for _, inode := range gone {
		if i := slices.Index(left, inode); i >= 0 {
			left[i] = left[len(left)-1]
			left = left[:len(left)-1]
		}
	}
	return left, certain
}

// isOurs tells whether a socket is a member, or our own.
func (g *Group) isOurs(inode uint64) bool {
	return inode == g.anchor.inode || slices.ContainsFunc(g.members, func(m *member) bool { return m.inode == inode })
}

// strangers returns the sockets of the kernel's group that are not ours, nil if that cannot be
// known: those that listen where our own does, for the same families and as the same user
// (inet_reuseport_add_sock).
func (g *Group) strangers() []uint64 {
	all, err := sockdiag.List(uint16(g.addr.Port), sockdiag.Listening)
	if err != nil {
		return nil
	}
	own := slices.IndexFunc(all, func(s sockdiag.Socket) bool { return s.Inode == g.anchor.inode })
	if own < 0 {
		return nil
	}
	others := []uint64{}
	for _, s := range all {
		like := all[own]
		like.Inode, like.Cookie, like.Queue = s.Inode, s.Cookie, s.Queue
		if s == like && !g.isOurs(s.Inode) {
			others = append(others, s.Inode)
		}
	}
	return others
}

// unfilter removes a socket's filter, and tells whether there was one.
func unfilter(fd int) (filtered bool, err error) {
	switch err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err {
	case nil:
		return true, nil
	case unix.ENOENT:
		return false, nil
	case unix.EPERM:
		return false, ErrSpoiled
	default:
		return false, fmt.Errorf("setsockopt: %w", err)
	}
}
