package reexec

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/reexec/early"
)

const (
	// maxTries is how often a program that takes another's place may begin.
	maxTries = 4
	// againPause is the time before the next try: most of what a machine is short of is there again in a moment. It
	// doubles with each.
	againPause = 100 * time.Millisecond
	// againRoom is how many open files there must be room for, for each that is kept: itself, its duplicate, and what the
	// program makes of it.
	againRoom = 4
)

// again is what another try of a program needs that takes another's place: what it was left, whatever it has taken or
// closed meanwhile.
type again struct {
	try    int         // this one, from 1
	memory int         // a duplicate of the bundle's descriptor
	copies map[int]int // of the others, by number
}

// newAgain keeps duplicates until the program has begun. It returns nil if there is no room for them: then there is no other
// try.
func newAgain(b *Bundle, memory, try int) *again {
	a := &again{try: try, memory: -1, copies: make(map[int]int)}
	kept := slices.Sorted(maps.Keys(b.files))
	behind := max(memory, unix.Stderr) + 1 // of all, so that none is in the way of another one that comes back
	if len(kept) > 0 {
		behind = max(behind, kept[len(kept)-1]+1)
	}
	if leftOver.pipe >= behind {
		behind = leftOver.pipe + 1
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(againRoom*(len(kept)+1)) {
		return nil
	}
	var err error
	if a.memory, err = unix.FcntlInt(uintptr(memory), unix.F_DUPFD_CLOEXEC, behind); err != nil {
		return nil
	}
	for _, fd := range kept {
		if a.copies[fd], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, behind); err != nil {
			delete(a.copies, fd)
			a.close()
			return nil
		}
	}
	return a
}

func (a *again) close() {
	if a == nil {
		return
	}
	unix.Close(a.memory)
	for _, fd := range a.copies {
		unix.Close(fd)
	}
}

// Again runs a program anew that takes another's place and could not begin, from what it was left, since to end would end the
// service. It returns only if that failed, or there was no other try: b is nil or of a dry run, or the program has begun.
// All that it has started ends. say is called before.
func (b *Bundle) Again(p Program, say func(try, of int)) error {
	if b == nil || b.again == nil || b.again.try >= maxTries {
		return nil
	}
	a := b.again
	say(a.try+1, maxTries)
	time.Sleep(againPause << (a.try - 1))
	runtime.LockOSThread() // whose mask of signals goes on
	defer runtime.UnlockOSThread()
	mask := maskOf(signals)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &mask, nil); err != nil {
		return fmt.Errorf("reexec: %w", os.NewSyscallError("rt_sigprocmask", err))
	}
	syscall.ForkLock.Lock() // no child is to inherit them
	defer syscall.ForkLock.Unlock()
	for fd, duplicate := range a.copies {
		if err := unix.Dup3(duplicate, fd, 0); err != nil {
			return fmt.Errorf("reexec: descriptor %d: %w", fd, os.NewSyscallError("dup3", err))
		}
	}
	if _, err := unix.FcntlInt(uintptr(a.memory), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("reexec: %w", os.NewSyscallError("fcntl", err))
	}
	if _, err := unix.Seek(a.memory, 0, unix.SEEK_SET); err != nil {
		return fmt.Errorf("reexec: %w", os.NewSyscallError("lseek", err))
	}
	value := pass(why(fmt.Sprintf("%s%s%d", toResume, trySeparator, a.try+1)), a.memory)
	leftOver.signals = append(leftOver.signals, early.Caught()...)
	if leftOver.pipe != 0 {
		unix.FcntlInt(uintptr(leftOver.pipe), unix.F_SETFD, 0)
		value += ":" + leftOver.String()
	}
	hear := ignore(unix.SIGHUP) // or it would end the next program
	err := syscall.Exec(p.Path, p.Args, append(slices.Clone(p.Env), value))
	hear()
	return fmt.Errorf("reexec: %s: %w", p.Path, os.NewSyscallError("execve", err))
}

// trySeparator stands before the number of a try that is not the first.
const trySeparator = "-"

// parseTry returns the word and the number of a reason such as resume-2.
func parseTry(reason string) (word string, try int) {
	word, number, ok := strings.Cut(reason, trySeparator)
	n, err := strconv.Atoi(number)
	if !ok {
		return reason, 1
	}
	if err != nil || n < 2 {
		return "", 1 // which is no reason
	}
	return word, n
}
