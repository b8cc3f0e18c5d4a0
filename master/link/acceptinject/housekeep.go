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

const (
	// tick is the time between two looks at what no call tells us: signals for threads that wait
	// in accept, and connections that nobody fetches.
	tick = 50 * time.Millisecond
	// closedTicks is for how many ticks the worker may leave connections in the queue before we look whether it
	// still has a socket to accept from.
	closedTicks = 20
	// maxLooks is for how many waiting threads one tick looks for signals.
	maxLooks = 64
)

// erestartsys is the kernel's ERESTARTSYS (linux/errno.h): the call is made again after a signal's
// handler, unless that was installed without SA_RESTART. A program sees it if there is no signal.
const erestartsys = unix.Errno(512)

// keepHouse has housekeep look what there is to do.
func (l *Link) keepHouse() {
	select {
	case l.todo <- struct{}{}:
	default: // it has not looked yet
	}
}

// housekeep answers calls that wait when connections come for them, and ticks as long as there is something to
// watch. It runs until Close.
func (l *Link) housekeep() {
	var next <-chan time.Time
	for {
		select {
		case <-l.Closed():
			return
		case <-l.todo:
		case <-next:
			next = nil
			l.runTick()
		}
		l.answerWaiting()
		l.mu.Lock()
		l.ticking = l.accepted || len(l.queue) > 0 || len(l.waiting) > 0
		if l.ticking && next == nil {
			next = time.After(tick)
		}
		l.mu.Unlock()
	}
}

func (l *Link) runTick() {
	l.mu.Lock()
	l.wakeup()
	if len(l.queue) == 0 || l.accepted {
		l.idleTicks = 0
	} else {
		l.idleTicks++
		l.wakeAll()
	}
	l.accepted = false
	look := l.idleTicks > 0 && l.idleTicks%closedTicks == 0
	l.mu.Unlock()
	if look {
		l.removeClosed()
	}
	l.interruptSignalled()
}

// wakeAll is for connections that nobody accepts: perhaps nobody is where we have put a wake-up, or somebody else has
// taken it, or the one thread that it has woken (EPOLLEXCLUSIVE) is busy with what it accepted then. It does so ever
// more rarely. mu is held.
func (l *Link) wakeAll() {
	if l.idleTicks&(l.idleTicks-1) == 0 {
		for _, d := range l.decoys {
			if l.queuedFor(l.familyAt(d)) > 0 {
				d.wakeAnew()
			}
		}
	}
}

// removeClosed forgets decoys that no process has open any more: nobody would accept from them.
func (l *Link) removeClosed() {
	inodes := l.inodes()
	held, err := listening.Holding(l.Roots(), inodes)
	if err != nil {
		return // they may be there
	}
	l.mu.Lock()
	last := false
	for _, d := range slices.Clone(l.decoys) {
		if slices.Contains(inodes, d.inode) && !slices.Contains(held, d.inode) {
			last = l.remove(d)
		}
	}
	l.mu.Unlock()
	if last {
		l.leave(errShut)
	}
}

// interruptSignalled ends the waiting of threads that have a signal to handle. Only deadly signals
// interrupt a call of which we have been notified (seccomp.BindAccept), so we have to look.
func (l *Link) interruptSignalled() {
	l.mu.Lock()
	n := min(len(l.waiting), maxLooks)
	some := slices.Clone(l.waiting[:n])
	l.waiting = append(l.waiting[:0], l.waiting[n:]...)
	l.mu.Unlock()
	kept := some[:0]
	for _, call := range some {
		if !l.Notifs.StillValid(call.id) {
			continue // its thread was killed
		}
		own, shared, threads := pendingSignals(call.TID)
		switch {
		case own || shared && threads == 1:
			l.Notifs.Answer(call.id, erestartsys)
		case shared && call.signalled:
			// No other thread has handled it for a tick. It may be for this one.
			l.Notifs.Answer(call.id, unix.EINTR)
		default:
			call.signalled = shared
			kept = append(kept, call)
		}
	}
	l.mu.Lock()
	l.waiting = append(l.waiting, kept...)
	l.mu.Unlock()
}

// pendingSignals tells whether signals wait for a thread: its own, and those of its process that it would
// handle; and how many threads that process has.
func pendingSignals(tid int) (own, shared bool, threads int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false, false, 0
	}
	return parseStatus(string(text))
}

// parseStatus finds the same in a process's status (man 5 proc_pid_status).
func parseStatus(status string) (own, shared bool, threads int) {
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
