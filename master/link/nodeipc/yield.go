package nodeipc

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	crowd      = 2                     // connections under way from which on to yield
	longYield  = 10 * time.Millisecond // several slices of those who compute
	yieldAgain = 16                    // reads without, after a long one
)

// yielder lets the workers run before the master reads what they say.
//
// A worker says two words for each connection, and under load the master would be woken
// for almost every one. They only tell it which descriptors to close, so it goes to the end
// of the processor's queue first, and then reads many at once: that halves what a
// connection costs it. With an idle processor it comes back at once.
//
// Meanwhile it keeps one of the Go scheduler's processors, and processes that run instead may
// compute for long: after a yield longer than longYield there are none for a while.
type yielder struct {
	pause int // reads after which to yield again
}

func (y *yielder) yield() {
	if y.pause > 0 {
		y.pause--
		return
	}
	start := time.Now()
	unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	if time.Since(start) > longYield {
		y.pause = yieldAgain
	}
}
