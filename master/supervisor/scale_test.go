package supervisor

import (
	"strings"
	"testing"
	"time"
)

func TestScaleUpPublishesReadySlotsInOrder(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		w.scale(4)
		w.expect("2a starts", "3a starts")
		w.ready("3a")
		w.expect() // or slot 2 would count without ever having had a worker
		w.holds("0a 1a")
		w.ready("2a")
		w.expect("resize 3", "fill 2a", "resize 4", "fill 3a")
		w.exits("3a", 1) // from here on it is a slot like any other
		w.expect("empty 3", "3b starts")
		w.saw("scaled 4", "started 2a", "ready 3a", "ready 2a")
	})
}

func TestScaleUpWhoseWorkerDiesBeforeItsTurn(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.scale(3)
		w.ready("2a")
		w.exits("2a", 1)
		w.ready("1a")
		w.expect("1a starts", "2a starts", "2b starts", "resize 2", "fill 1a")
		w.ready("2b")
		w.expect("resize 3", "fill 2b")
	})
}

func TestScaleDownShrinksAtOnceAndDrains(t *testing.T) {
	play(t, func(w *world) {
		w.serve(3)
		w.scale(1)
		w.expect("resize 1", "1a drains", "2a drains")
		w.exits("2a", 0)
		w.after(w.cfg.DrainTimeout, "1a TERM")
		w.exits("1a", 0)
		w.after(time.Hour)
		w.holds("0a")
		w.saw("draining 1a", "draining 2a", "scaled 1", "exited 2a status 0", "terminated 1a", "exited 1a status 0")
	})
}

func TestScaleDownWhileStarting(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.Workers = 2
		w.run()
		w.scale(1)
		w.expect("resize 2", "0a starts", "1a starts", "resize 1", "1a drains", "1a TERM")
		w.ready("1a") // too late
		w.exits("1a", 0)
		w.after(time.Second)
	})
}

func TestScaleDownOfSlotsThatWereNotPublished(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.scale(3)
		w.ready("2a")
		w.scale(1)
		w.expect("1a starts", "2a starts", "1a drains", "1a TERM", "2a drains")
		w.scale(2)
		w.expect("1b starts")
		w.ready("1b")
		w.expect("resize 2", "fill 1b")
	})
}

// The old worker of a slot that was removed and added again is not of that slot.
func TestSlotRemovedAndAddedAgain(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		w.scale(1)
		w.scale(2)
		w.expect("resize 1", "1a drains", "1b starts")
		w.leaves("1a")
		w.exits("1b", 1)
		w.expect("1c starts")
		w.ready("1c")
		w.expect("resize 2", "fill 1c")
		w.exits("1a", 1)
		w.after(time.Hour)
		w.holds("0a 1c")
	})
}

// The crashes of a slot that was removed do not count when it is added again.
func TestSlotAddedAgainHasNotFailed(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		w.exits("1a", 1)
		w.ready("1b")
		w.scale(1)
		w.scale(2)
		w.expect("empty 1", "1b starts", "fill 1b", "resize 1", "1b drains", "1c starts")
		w.exits("1c", 1)
		w.expect("1d starts")
	})
}

func TestSlotRemovedDuringBackoff(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		w.exits("1a", 1)
		w.exits("1b", 1)
		w.scale(1)
		w.expect("empty 1", "1b starts", "resize 1")
		w.after(time.Hour)
	})
}

// A new slot's worker is of the new generation, so the reload leaves it in peace,
// be it ready by then or not.
func TestScaleUpDuringReload(t *testing.T) {
	for _, early := range []bool{true, false} {
		play(t, func(w *world) {
			w.serve(1)
			r := w.reload()
			w.scale(2)
			w.expect("0b starts", "1a starts")
			if early {
				w.ready("1a")
				w.ready("0b")
				w.expect("resize 2", "fill 1a", "fill 0b", "0a drains")
			} else {
				w.ready("0b")
				r.waits()
				w.ready("1a")
				w.expect("fill 0b", "0a drains", "resize 2", "fill 1a")
			}
			r.succeeds()
		})
	}
}

func TestScaleUpDuringReloadThatFailsInTheNewSlot(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		r := w.reload()
		w.scale(2)
		w.ready("0b")
		w.exits("1a", 1)
		if err := r.fails(); !strings.Contains(err.Error(), "slot 1: worker exited") {
			t.Errorf("error %q, want one that names slot 1", err)
		}
		w.expect("0b starts", "1a starts", "fill 0b", "0a drains", "1b starts")
	})
}

func TestScaleDownDuringReload(t *testing.T) {
	play(t, func(w *world) {
		w.serve(3)
		r := w.reload()
		w.ready("0b")
		w.expect("0b starts", "fill 0b", "0a drains", "1b starts")
		w.scale(2) // a slot that the reload has not reached
		w.expect("resize 2", "2a drains")
		r.waits()
		w.scale(1) // the one that it waits for
		w.expect("resize 1", "1a drains", "1b drains", "1b TERM")
		r.succeeds()
		w.holds("0b")
	})
}

func TestScaleBounds(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxWorkers = 3
		w.serve(2)
		for _, tt := range []struct {
			err  error
			want string
		}{
			{w.s.Scale(0), "0 workers, want at least 1"},
			{w.s.Scale(-1), "-1 workers, want at least 1"},
			{w.s.Scale(4), "4 workers, want at most 3"},
			{w.s.ScaleBy(-2), "0 workers, want at least 1"},
			{w.s.ScaleBy(2), "4 workers, want at most 3"},
		} {
			if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", tt.err, tt.want)
			}
		}
		w.expect()
		if err := w.s.ScaleBy(1); err != nil {
			t.Error(err)
		}
		w.expect("2a starts")
		if err := w.s.ScaleBy(-2); err != nil {
			t.Error(err)
		}
		w.expect("resize 1", "1a drains", "2a drains", "2a TERM")
	})
}

func (w *world) scale(n int) {
	w.Helper()
	if err := w.s.Scale(n); err != nil {
		w.Fatal(err)
	}
	w.settle()
}
