package fdtest

import (
	"runtime"
	"testing"
	"time"
)

// Patience is how long what should be immediate may take, on a busy machine and with the race detector.
const Patience = 20 * time.Second

// Eventually polls until ok, and fails the test if that takes longer than Patience.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !Poll(ok) {
		t.Fatalf("%s: not within %v", what, Patience)
	}
}

// Poll polls until ok, for at most Patience, and tells whether that came.
func Poll(ok func() bool) bool {
	return pollFor(Patience, ok)
}

func pollFor(patience time.Duration, ok func() bool) bool {
	const longest = 2 * time.Millisecond
	pause := 20 * time.Microsecond
	for end := time.Now().Add(patience); !ok(); pause = min(2*pause, longest) {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

// Closed waits until a channel is closed, or brings something, and fails the test if that takes longer than Patience.
func Closed[T any](t testing.TB, what string, c <-chan T) {
	t.Helper()
	Receive(t, what, c)
}

// IsClosed tells whether a channel is closed, or has brought something, which it takes.
func IsClosed[T any](c <-chan T) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Receive waits for what a channel brings, and fails the test if that takes longer than Patience.
func Receive[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(Patience):
		t.Fatalf("%s: not within %v", what, Patience)
	}
	return v
}

// Check fails the test if there is an error.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Stacks returns what all goroutines do.
func Stacks() string {
	for all := make([]byte, 32<<10); ; all = make([]byte, 2*len(all)) {
		if n := runtime.Stack(all, true); n < len(all) {
			return string(all[:n])
		}
	}
}
