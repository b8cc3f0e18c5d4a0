package openconns

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// soon and late are how long Await sleeps between two looks, at first and in the end.
	soon = 20 * time.Millisecond
	late = time.Second
	// share bounds what looking may take of a processor: of so many parts of Await's time, one.
	share = 50
	// inARow is how many looks in a row must see nothing: a connection that is just being accepted is in no
	// queue any more, and not yet a descriptor of a process.
	inARow = 2
)

// Await looks again and again, and returns true when done has returned true twice in a row; false
// when stop is closed, or done fails.
func Await(stop <-chan struct{}, done func() (bool, error)) (bool, error) {
	delay, seen := soon, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return false, nil
		case <-timer.C:
		}
		is, cost, err := measured(done)
		if err != nil {
			return false, err
		}
		wait := max(delay, share*cost)
		switch {
		case !is:
			seen = 0
			delay = min(delay+delay/4, late)
		case seen+1 == inARow:
			return true, nil
		default:
			seen++
			wait = 2 * fresh
		}
		timer.Reset(wait)
	}
}

// measured calls done, and returns the processor's time that it took too. The time that passes meanwhile would say more of the machine: where all
// wait for processors, or the master is stopped for a moment, a cheap look takes long.
func measured(done func() (bool, error)) (is bool, cost time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := processorTime()
	is, err = done()
	return is, processorTime() - start, err
}

// processorTime is that of this thread so far.
func processorTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
