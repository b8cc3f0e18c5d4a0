package reexec

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// signals are those that mean something to a master and that Exec blocks, so that they wait for the
// next program. A Go program lets nobody block those that end it by default: see Notify.
var signals = []unix.Signal{unix.SIGUSR1, unix.SIGUSR2, unix.SIGTTIN, unix.SIGTTOU}

// early gets signals from the start of a program that Exec runs; nil in others.
var early chan os.Signal

func init() {
	if _, ok := os.LookupEnv(variable); ok {
		early = make(chan os.Signal, capacity)
		signal.Notify(early, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	}
}

// capacity is how many signals wait to be heard.
const capacity = 16

// Notify is signal.Notify for a program that may have been run by Exec: on the channel comes also
// what has been waiting. Call it once.
//
// SIGHUP, SIGINT and SIGTERM cannot wait: the Go runtime unblocks them at its start, where they end
// the program until they are caught. They are from the first moment on in which that is possible,
// and Exec has SIGHUP ignored until then.
//
// The others wait. But os/signal unblocks a signal, and then catches it. The runtime has caught most
// of them from the start, not SIGTTIN and SIGTTOU: one that waits would stop the process.
func Notify(signals ...os.Signal) chan os.Signal {
	c := early
	if c == nil {
		c = make(chan os.Signal, capacity)
	}
	stops := []unix.Signal{unix.SIGTTIN, unix.SIGTTOU}
	var waited []unix.Signal
	for _, sig := range stops {
		if takePending(sig) {
			waited = append(waited, sig)
		}
		signal.Ignore(sig)
	}
	signal.Notify(c, signals...)
	for _, sig := range waited {
		unix.Kill(unix.Getpid(), sig)
	}
	return c
}

// takePending takes a signal that is blocked and waits, if it does.
func takePending(sig unix.Signal) bool {
	set := maskOf([]unix.Signal{sig})
	var now unix.Timespec
	const setSize = 8
	_, _, errno := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0, uintptr(unsafe.Pointer(&now)), setSize, 0, 0)
	return errno == 0
}

// maskOf is a set of signals.
func maskOf(signals []unix.Signal) (set unix.Sigset_t) {
	const word = 64 // bits: of an unsigned long, on the machines that we know
	for _, sig := range signals {
		set.Val[(sig-1)/word] |= 1 << ((sig - 1) % word)
	}
	return set
}

// Unblocked calls f on a thread that blocks no signal that Exec does, so that a process that f
// starts does not either: it would inherit that.
func Unblocked(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mask, before := maskOf(signals), unix.Sigset_t{}
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &mask, &before); err != nil {
		return fmt.Errorf("reexec: %w", os.NewSyscallError("rt_sigprocmask", err))
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	return f()
}
