package supervisor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestReloadGoesSlotBySlot(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		r := w.reload()
		w.expect("0b starts")
		w.after(time.Second) // the old one serves on
		w.holds("0a 1a")
		w.ready("0b")
		w.expect("fill 0b", "0a drains", "1b starts")
		w.pass(time.Second)
		r.waits()
		w.ready("1b")
		w.expect("fill 1b", "1a drains")
		r.succeeds()

		w.after(w.cfg.DrainTimeout-time.Second, "0a TERM")
		w.exits("0a", 0)
		w.after(time.Second, "1a TERM")
		w.after(w.cfg.KillTimeout, "1a KILL")
		w.after(time.Hour)
		w.holds("0b 1b")
		if want := (Seat{Slot: 1, Slots: 2, Generation: 2}); w.worker("1b").seat != want {
			t.Errorf("seat %v, want %v", w.worker("1b").seat, want)
		}
		w.saw("reloading 2", "started 0b", "ready 0b", "draining 0a", "started 1b", "ready 1b", "draining 1a", "reloaded 2",
			"terminated 0a", "exited 0a status 0", "terminated 1a", "killed 1a", "exited 1a signal killed")
	})
}

func TestReloadWithoutPatience(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.DrainTimeout, w.cfg.KillTimeout = 0, 0
		w.serve(1)
		w.reload()
		w.ready("0b")
		w.expect("0b starts", "fill 0b", "0a drains", "0a TERM")
		w.after(1, "0a KILL")
	})
}

// A version that does not come up never replaces the one that works.
func TestReloadOfABadVersion(t *testing.T) {
	noFile, noLink := errors.New("no such file"), errors.New("too many open files")
	for name, tt := range map[string]struct {
		reload func(w *world) *call
		want   string
		is     error
	}{
		"exits": {
			func(w *world) *call { r := w.reload(); w.exits("0b", 1); return r },
			"worker exited with status 1 before it was ready", nil},
		"is never ready": {
			func(w *world) *call { r := w.reload(); w.pass(w.cfg.ReadyTimeout); return r },
			"worker was not ready within 1m0s", nil},
		"leaves": {
			func(w *world) *call { r := w.reload(); w.leaves("0b"); return r },
			"worker left: had enough", errLeft},
		"cannot be started": {
			func(w *world) *call { w.startErr = noFile; return w.reload() },
			"no such file", noFile},
		"gets no link": {
			func(w *world) *call { w.linkErr = noLink; return w.reload() },
			"too many open files", noLink},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(w *world) {
				w.serve(2)
				err := tt.reload(w).fails()
				want := "slot 0: " + tt.want + "; slots 0 to 1 keep what they had"
				if err.Error() != "supervisor: reload failed: "+want || !errors.Is(err, tt.is) && tt.is != nil {
					t.Errorf("error %q, want one with %q", err, want)
				}
				w.saw("reloading 2", "reload failed 2: "+want)
				w.pass(w.cfg.KillTimeout)
				w.holds("0a 1a")
				w.lines = nil
				w.after(time.Hour) // and nobody tries again
			})
		})
	}
}

func TestReloadThatFailsLaterKeepsWhatWasReplaced(t *testing.T) {
	play(t, func(w *world) {
		w.serve(3)
		r := w.reload()
		w.ready("0b")
		w.exits("1b", 1)
		if err := r.fails(); !strings.Contains(err.Error(), "slot 1: ") || !strings.Contains(err.Error(), "slots 1 to 2 keep") {
			t.Errorf("error %q, want one that names slot 1 and slots 1 to 2", err)
		}
		w.expect("0b starts", "fill 0b", "0a drains", "1b starts")
		w.holds("0b 1a 2a")
	})
}

// TestReloadsDuringAReloadBecomeOne: a worker that a reload has started by then may be older than a change since, so the
// others need one of their own; but one is enough for all of them.
func TestReloadsDuringAReloadBecomeOne(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		first := w.reload()
		second, third := w.reload(), w.reload()
		w.expect("0b starts")
		w.ready("0b")
		first.succeeds()
		second.waits()
		third.waits()
		w.expect("fill 0b", "0a drains", "0c starts")
		w.ready("0c")
		second.succeeds()
		third.succeeds()
		w.expect("fill 0c", "0b drains")
		w.saw("reloading 2", "reloaded 2", "reloading 3", "reloaded 3")
	})
}

func TestReloadFollowsOneThatFailed(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		first, second := w.reload(), w.reload()
		w.exits("0b", 1)
		first.fails()
		second.waits()
		w.expect("0b starts", "0c starts")
		third := w.reload()
		w.startErr = errors.New("no such file")
		w.exits("0c", 1)
		second.fails()
		third.fails()
		w.expect("0d cannot start")
		w.holds("0a")
		w.saw("reload failed 2: slot 0: worker exited with status 1 before it was ready; slot 0 keeps what it had",
			"reloading 3", "reloading 4", "reload failed 4: slot 0: no such file; slot 0 keeps what it had")
	})
}

func TestSeveralGenerationsDrainTogether(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		for _, next := range []string{"0b", "0c", "0d"} {
			r := w.reload()
			w.ready(next)
			r.succeeds()
			w.pass(10 * time.Minute)
		}
		w.expect("0b starts", "fill 0b", "0a drains", "0c starts", "fill 0c", "0b drains", "0d starts", "fill 0d", "0c drains")
		w.exits("0b", 0) // its last client has gone
		w.after(w.cfg.DrainTimeout-30*time.Minute, "0a TERM")
		w.exits("0a", 0)
		w.after(20*time.Minute, "0c TERM")
		w.exits("0c", 0)
		w.after(time.Hour)
		w.holds("0d")
	})
}

func TestReloadWhoseCallerGivesUpGoesOn(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		ctx, cancel := context.WithCancel(context.Background())
		r := w.reloadWith(ctx)
		cancel()
		if err := r.fails(); err != context.Canceled {
			t.Errorf("error %v, want %v", err, context.Canceled)
		}
		w.ready("0b")
		w.ready("1b")
		w.saw("reloaded 2")
	})
}

func TestCrashOfTheOldWorkerDuringReload(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		r := w.reload()
		w.exits("0a", 1)
		w.expect("0b starts", "empty 0") // and 0b is the successor
		w.ready("0b")
		w.expect("fill 0b")
		r.succeeds()
	})
}

func TestCrashOfBothWorkersDuringReload(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		r := w.reload()
		w.exits("0a", 1)
		w.exits("0b", 1)
		r.fails()
		w.expect("0b starts", "empty 0", "0c starts")
		w.exits("0c", 1)
		w.after(100*time.Millisecond, "0d starts")
		w.ready("0d")
		w.expect("fill 0d")
	})
}

func TestStartFailureInAnEmptySlotDuringReload(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		first := w.reload()
		second := w.reload()
		w.startErr = errors.New("no such file")
		w.exits("0a", 1)
		w.exits("0b", 1)
		first.fails()
		second.fails()
		w.expect("0b starts", "empty 0", "0c cannot start")
		w.after(100*time.Millisecond, "0d cannot start")
		w.after(200*time.Millisecond, "0e cannot start")
	})
}

func TestCrashOfAnOldWorkerElsewhereDuringReload(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		r := w.reload()
		w.ready("0b")
		w.expect("0b starts", "fill 0b", "0a drains", "1b starts")
		w.exits("1a", 1)
		w.expect("empty 1")
		w.ready("1b")
		r.succeeds()
		w.holds("0b 1b")
	})
}

// A version that comes up and does not last must not go on to replace the others.
func TestCrashOfANewWorkerStopsTheReload(t *testing.T) {
	play(t, func(w *world) {
		w.serve(3)
		r := w.reload()
		w.ready("0b")
		w.expect("0b starts", "fill 0b", "0a drains", "1b starts")
		w.exits("2a", 1) // an old one, which does not
		w.expect("empty 2", "2b starts")
		w.exits("0b", 1)
		w.expect("empty 0", "1b drains", "1b TERM", "0c starts")
		if err := r.fails(); !strings.Contains(err.Error(), "slot 0: worker exited with status 1; slots 1 to 2 keep") {
			t.Errorf("error %q", err)
		}
		w.ready("0c")
		w.ready("2b")
		w.holds("0c 1a 2b")
		for name, generation := range map[string]int{"0c": 2, "2b": 1} {
			if got := w.worker(name).seat.Generation; got != generation {
				t.Errorf("%s is of generation %d, want %d", name, got, generation)
			}
		}
	})
}

func TestReloadDoesNotWaitForBackoff(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.exits("0a", 1)
		w.exits("0b", 1)
		w.expect("empty 0", "0b starts")
		r := w.reload()
		w.expect("0c starts")
		w.after(time.Second) // nothing else was due
		w.ready("0c")
		w.expect("fill 0c")
		r.succeeds()
	})
}

func TestReloadDuringTheFirstStart(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.Workers = 2
		w.run()
		r := w.reload()
		w.expect("resize 2", "0a starts", "1a starts", "0a drains", "0a TERM", "0b starts")
		w.ready("1a")
		w.ready("0b")
		w.expect("fill 1a", "fill 0b", "1b starts")
		w.ready("1b")
		w.expect("fill 1b", "1a drains")
		r.succeeds()
	})
}

// Generations that drain are bounded in number: a reload that would start one process
// too many fails, and says what to do.
func TestReloadIsBoundedByProcesses(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxProcesses = 4
		w.serve(2)
		r := w.reload()
		w.ready("0b")
		w.ready("1b")
		r.succeeds()
		if err := w.reload().fails(); !strings.Contains(err.Error(), "slot 0: 4 worker processes run") || !strings.Contains(err.Error(), "drain timeout") {
			t.Errorf("error %q", err)
		}
		w.holds("0b 1b")
		w.exits("0a", 0)
		w.exits("1a", 0)
		r = w.reload()
		w.ready("0c")
		w.ready("1c")
		r.succeeds()
	})
}
