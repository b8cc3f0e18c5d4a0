package supervisor

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestStopDrainsThenTerminatesThenKills(t *testing.T) {
	play(t, func(w *world) {
		w.serve(3)
		w.s.Stop()
		w.expect("empty 0", "0a drains", "empty 1", "1a drains", "empty 2", "2a drains")
		w.exits("1a", 0)
		w.pass(w.cfg.StopTimeout - 1)
		w.expect()
		w.pass(1)
		w.expectAnyOrder("0a TERM", "2a TERM")
		w.exits("2a", 0)
		w.runs()
		w.after(w.cfg.KillTimeout, "0a KILL")
		if err := w.ends(); err != nil {
			t.Errorf("Run returned %v", err)
		}
		w.saw("draining 0a", "draining 1a", "draining 2a", "exited 1a status 0", "terminated 0a", "exited 2a status 0",
			"killed 0a", "exited 0a signal killed")
	})
}

func TestStopWithoutPatience(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.StopTimeout, w.cfg.KillTimeout = 0, 0
		w.serve(1)
		w.s.Stop()
		w.expect("empty 0", "0a drains", "0a TERM")
		w.after(1, "0a KILL")
		w.ends()
	})
}

// Whatever a worker is doing, it is gone StopTimeout and KillTimeout after Stop.
func TestStopInTheMiddleOfEverything(t *testing.T) {
	play(t, func(w *world) {
		w.serve(3)
		w.exits("2a", 1)
		w.exits("2b", 1) // slot 2 backs off
		w.expect("empty 2", "2b starts")
		first := w.reload()
		w.ready("0b") // 0a drains, for an hour
		w.expect("0b starts", "fill 0b", "0a drains", "1b starts")
		second := w.reload()
		w.scale(4) // 3a starts
		w.expect("3a starts")
		w.s.Stop()
		w.expect("empty 0", "0b drains", "1b drains", "1b TERM", "empty 1", "1a drains", "3a drains", "3a TERM")
		for _, r := range []*call{first, second} {
			if err := r.fails(); err != ErrStopped {
				t.Errorf("Reload returned %v, want %v", err, ErrStopped)
			}
		}
		w.ready("1b") // too late
		w.exits("1b", 1)
		w.leaves("1a")
		w.s.Stop() // again
		w.expect()
		w.after(w.cfg.KillTimeout-lastMoment, "3a KILL")
		w.pass(w.cfg.StopTimeout - w.cfg.KillTimeout)
		w.expectAnyOrder("0a TERM", "0b TERM", "1a TERM")
		w.pass(w.cfg.KillTimeout)
		w.expectAnyOrder("0a KILL", "0b KILL", "1a KILL")
		if err := w.ends(); err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestStopBeforeRun(t *testing.T) {
	play(t, func(w *world) {
		w.create()
		w.s.Stop()
		if err := w.s.Reload(context.Background()); err != ErrStopped {
			t.Errorf("Reload returned %v, want %v", err, ErrStopped)
		}
		w.run()
		w.pass(w.cfg.KillTimeout) // of what was started before Stop was seen
		if err := w.ends(); err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestStopFromACallback(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.OnEvent = func(e Event) {
			if w.hear(e); e.Kind == WorkerReady {
				w.s.Stop()
			}
		}
		w.run()
		w.ready("0a")
		w.exits("0a", 0)
		w.ends()
	})
}

func TestNothingWorksAfterStop(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.s.Stop()
		check := func() {
			t.Helper()
			for name, err := range map[string]error{
				"Reload":  w.s.Reload(context.Background()),
				"Scale":   w.s.Scale(2),
				"ScaleBy": w.s.ScaleBy(1),
			} {
				if err != ErrStopped {
					t.Errorf("%s returned %v, want %v", name, err, ErrStopped)
				}
			}
		}
		check()
		w.exits("0a", 0)
		w.ends()
		check()
		w.s.Stop()
	})
}

func TestEndOfContextKills(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		play(t, func(w *world) {
			w.serve(2)
			r := w.reload()
			w.ready("0b") // 0a drains, 0b serves, 1b starts
			if stopped {
				w.s.Stop()
				w.pass(time.Second)
			}
			w.kill()
			w.pass(0)
			if err := w.ends(); err != context.Canceled {
				t.Errorf("Run returned %v, want %v", err, context.Canceled)
			}
			if err := r.fails(); err != ErrStopped {
				t.Errorf("Reload returned %v, want %v", err, ErrStopped)
			}
			w.saw("killed 0a")
			w.saw("killed 0b")
			w.saw("killed 1a")
			w.saw("killed 1b")
			if err := w.s.Scale(1); err != ErrStopped {
				t.Errorf("Scale returned %v, want %v", err, ErrStopped)
			}
		})
	}
}

func TestEndOfContextHasACause(t *testing.T) {
	play(t, func(w *world) {
		w.create()
		second := errors.New("a second signal")
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(second)
		if err := w.s.Run(ctx); err != second {
			t.Errorf("Run returned %v, want %v", err, second)
		}
	})
}

// A process that hangs in the kernel must not keep the master from ending.
func TestRunEndsWithoutAProcessThatCannotBeKilled(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.worker("0a").unkillable = true
		w.s.Stop()
		w.expect("empty 0", "0a drains")
		w.after(w.cfg.StopTimeout, "0a TERM")
		w.after(w.cfg.KillTimeout, "0a KILL")
		w.pass(reapTimeout - 1)
		w.runs()
		w.pass(1)
		if err := w.ends(); err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}
