package openconns

import "time"

const (
	// soon and late are how long Await sleeps between two looks, at first and in the end.
	soon = 20 * time.Millisecond
	late = time.Second
	// share bounds what looking may take: of so many parts of Await's time, one.
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
		start := time.Now()
		is, err := done()
		if err != nil {
			return false, err
		}
		wait := max(delay, share*time.Since(start))
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
