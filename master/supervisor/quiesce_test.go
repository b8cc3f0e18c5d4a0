package supervisor

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestQuiesce: it waits for the start of a worker and begins none, and for good it ends those that are not ready. Then the slot's
// next worker is started, unless another program has taken over.
func TestQuiesce(t *testing.T) {
	play(t, func(w *world) {
		over := make(chan struct{})
		ofSlot1["link open"](w, over)
		w.serve(3)
		w.exits("1a", 1)
		w.exits("2a", 1)
		w.pass(startDelay)
		w.lines = nil
		held := false
		q := &call{w, make(chan error, 1)}
		go func() {
			q.err <- w.s.Quiesce(true, func() error {
				held = true
				return errors.New("not upgraded")
			})
		}()
		w.settle()
		q.waits()
		w.exits("0a", 1) // whose successor is not started now
		w.pass(time.Second)
		w.expect("2b drains", "2b TERM", "empty 0")
		w.answers()
		if held {
			t.Error("a start is in progress")
		}
		close(over)
		if err := q.fails(); !held || !strings.Contains(err.Error(), "not upgraded") {
			t.Error(err)
		}
		w.pass(time.Second)
		w.expectAnyOrder("1b starts", "1b drains", "1b TERM", "0b starts", "1c starts", "2c starts")
	})
}
