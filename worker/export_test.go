package worker

import "time"

// Insides for the tests, which are outside the package because workertest imports it.
var (
	ServeOn  = serve
	ZeroCopy = zeroCopy
)

// SpreadWindow is window.
func SpreadWindow(p Place, timeout, over time.Duration) (after, long time.Duration) {
	return window(p, timeout, over)
}

// SpreadWaits has a listener ask wait, in place of the time.
func SpreadWaits(l *Listener, wait func(time.Time) bool) {
	l.spread.wait = func(until time.Time, _ <-chan struct{}) bool { return wait(until) }
}
