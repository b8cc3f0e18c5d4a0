package acceptinject

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/listening"
)

// maxLooks is for how many waiting threads one tick looks for signals.
const maxLooks = 64

// erestartsys is the kernel's own (linux/errno.h): the call is made again after a signal's
// handler, unless that was installed without SA_RESTART. A program sees it if there is no signal.
const erestartsys = unix.Errno(512)

// tend does what is to be done before the next notification is waited for.
func (l *Link) tend() {
	for {
		l.serve()
		l.mu.Lock()
		if l.due() {
			l.mu.Unlock()
			l.tick()
			continue
		}
		if len(l.queue) == 0 || len(l.waiting) == 0 {
			break
		}
		l.mu.Unlock() // it has just come
	}
	l.nextTick = l.when()
	l.Notifs.SetDeadline(l.nextTick)
	l.mu.Unlock()
}

// due tells whether it is time for a tick. mu is held.
func (l *Link) due() bool { return !l.nextTick.IsZero() && !time.Now().Before(l.nextTick) }

// when is the time of the next tick, zero if none is needed. mu is held.
func (l *Link) when() time.Time {
	switch {
	case len(l.queue) == 0 && len(l.waiting) == 0:
		return time.Time{}
	case l.nextTick.IsZero():
		return time.Now().Add(tick)
	default:
		return l.nextTick
	}
}

// plan sees to it that there is a tick if one is needed. mu is held.
func (l *Link) plan() {
	if l.nextTick.IsZero() && len(l.waiting) == 0 {
		l.nextTick = l.when()
		l.Notifs.SetDeadline(l.nextTick)
	}
}

// tick looks after what nobody tells us.
func (l *Link) tick() {
	l.mu.Lock()
	l.nextTick = time.Time{}
	l.knock(len(l.queue) - len(l.waiting))
	if len(l.queue) == 0 || l.accepted {
		l.stale = 0
	} else {
		l.stale++
		// Nobody comes where we have knocked: perhaps nobody is there.
		for _, d := range l.doors {
			if len(d.knocks) == 0 {
				d.knock(l.ceiling)
			}
		}
	}
	l.accepted = false
	stale := l.stale > 0 && l.stale%staleTicks == 0
	l.mu.Unlock()
	if stale {
		l.sweep()
	}
	l.signals()
}

// sweep forgets doors that no process has open any more. They would not know of our connections.
func (l *Link) sweep() {
	inodes := l.inodes()
	held, err := listening.Holding(l.Roots(), inodes)
	if err != nil {
		return // they may be there
	}
	l.mu.Lock()
	some, last := len(l.doors) > 0, false
	for _, d := range slices.Clone(l.doors) {
		if slices.Contains(inodes, d.inode) && !slices.Contains(held, d.inode) {
			last = l.remove(d)
		}
	}
	l.mu.Unlock()
	if some && last {
		l.leave(errShut)
	}
}

// signals ends the waiting of threads that have a signal to handle. A call that we have taken
// note of is interrupted by none but deadly ones (launch.AcceptInject), so it is for us to see.
func (l *Link) signals() {
	l.mu.Lock()
	n := min(len(l.waiting), maxLooks)
	some := slices.Clone(l.waiting[:n])
	l.waiting = append(l.waiting[:0], l.waiting[n:]...)
	l.mu.Unlock()
	kept := some[:0]
	for _, w := range some {
		if !l.Notifs.StillValid(w.id) {
			continue // it was killed
		}
		own, shared, threads := pending(w.TID)
		switch {
		case own || shared && threads == 1:
			l.Notifs.Answer(w.id, erestartsys)
		case shared && w.signalled:
			// No other thread has handled it for a tick. It may be for this one.
			l.Notifs.Answer(w.id, unix.EINTR)
		default:
			w.signalled = shared
			kept = append(kept, w)
		}
	}
	l.mu.Lock()
	l.waiting = append(l.waiting, kept...)
	l.mu.Unlock()
}

// pending tells whether signals wait for a thread: its own, and those of its process that it would
// handle; and how many threads that has.
func pending(tid int) (own, shared bool, threads int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false, false, 0
	}
	return parsePending(string(text))
}

func parsePending(status string) (own, shared bool, threads int) {
	var mine, all, blocked uint64
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Threads":
			threads, _ = strconv.Atoi(value)
		case "SigPnd":
			mine, _ = strconv.ParseUint(value, 16, 64)
		case "ShdPnd":
			all, _ = strconv.ParseUint(value, 16, 64)
		case "SigBlk":
			blocked, _ = strconv.ParseUint(value, 16, 64)
		}
	}
	return mine&^blocked != 0, all&^blocked != 0, threads
}
