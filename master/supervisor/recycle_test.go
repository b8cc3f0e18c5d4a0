package supervisor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestMaxMemory: workers with too much memory are replaced, one slot at a time, by others that are ready before the old ones drain.
func TestMaxMemory(t *testing.T) {
	play(t, func(w *world) {
		used := map[int]int64{1: 90, 2: 90}
		w.cfg.MaxMemory, w.cfg.Probation = 100, 2*time.Second
		w.cfg.Memory = func(pid int) int64 { w.inOrder(); return used[pid] }
		w.serve(2)
		w.pass(time.Hour)
		w.expect()
		if m := w.snapshot().Slots[1].Worker.Memory; m != 90 {
			t.Errorf("%d bytes are shown", m)
		}
		used[1], used[2] = 101, 3<<20
		w.pass(memoryInterval)
		first := w.firstRecycled()
		w.expect(first + "b starts")
		second := map[string]string{"0": "1", "1": "0"}[first]
		w.ready(first + "b")
		w.expect("fill " + first + "b")
		w.after(2*time.Second, first+"a drains", second+"b starts")
		w.ready(second + "b")
		w.pass(time.Hour - time.Second)
		w.expect("fill "+second+"b", second+"a drains")
		w.saw("recycled 0a: it has 0 KiB of memory, more than --max-memory 0 KiB")
		w.saw("recycled 1a: it has 3 MiB of memory, more than --max-memory 0 KiB")
		w.exits("0a", 0)
		w.exits("1a", 0)
	})
}

// firstRecycled is the slot whose worker was recycled first.
func (w *world) firstRecycled() string {
	w.Helper()
	w.settle()
	for _, e := range w.events {
		if after, ok := strings.CutPrefix(e, "recycled "); ok {
			return after[:1]
		}
	}
	w.Fatalf("events %v", w.events)
	return ""
}

// TestMaxAge: workers are replaced at their age, or up to a tenth earlier, and not all at the same time.
func TestMaxAge(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxAge = 1000 * time.Second
		w.serve(4)
		began := time.Now()
		w.pass(900*time.Second - time.Second)
		w.expect()
		at := make(map[time.Duration]bool)
		for slot := range 4 {
			for len(w.events) == 0 {
				w.pass(time.Second / 2)
			}
			if since := time.Since(began); since > 1001*time.Second {
				t.Fatalf("after %v", since)
			}
			at[time.Since(began)] = true
			name := w.firstRecycled()
			w.saw("recycled " + name + "a: it is as old as --max-age")
			w.ready(name + "b")
			w.exits(name+"a", 0)
			w.lines, w.events = nil, nil
			if slot == 3 {
				break
			}
		}
		if len(at) < 3 {
			t.Errorf("at %v", at)
		}
		w.pass(800 * time.Second)
		w.expect()
	})
}

// TestRecycleFails: a worker stays whose successor does not come up; that is tried again, ever later.
func TestRecycleFails(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxAge = time.Hour
		w.serve(1)
		w.pass(time.Hour)
		w.lines, w.events = nil, nil
		w.exits("0b", 1)
		w.holds("0a")
		w.after(100*time.Millisecond, "0c starts")
		w.exits("0c", 1)
		w.after(200*time.Millisecond, "0d starts")
		w.ready("0d")
		w.expect("fill 0d", "0a drains")
		w.exits("0a", 0)
	})
}

// TestRecycleYields: a reload replaces all workers, so none is recycled meanwhile, or after it.
func TestRecycleYields(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxAge = time.Hour
		w.serve(1)
		w.pass(time.Hour)
		w.lines = nil
		r := w.reload()
		w.expect("0b drains", "0b TERM", "0c starts")
		w.exits("0b", 0)
		w.ready("0c")
		r.succeeds()
		w.expect("fill 0c", "0a drains")
		w.exits("0a", 0)
		w.pass(time.Minute * 50)
		w.expect()
	})
}

// TestHealth: a worker is unhealthy when it has failed so many checks in a row, and healthy again with the first that it passes.
func TestHealth(t *testing.T) {
	play(t, func(w *world) {
		sick, asked := errors.New(""), 0
		sick = nil
		w.cfg.Health.Check = func(ctx context.Context, seat Seat) error { w.inOrder(); asked++; return sick }
		w.serve(1)
		w.pass(time.Minute)
		if asked != 6 {
			t.Errorf("asked %d times in a minute", asked)
		}
		sick = errors.New("503")
		w.pass(20 * time.Second)
		sick = nil
		w.pass(10 * time.Second)
		sick = errors.New("503")
		w.pass(20 * time.Second)
		if len(w.events) > 0 {
			t.Fatal(w.events)
		}
		w.pass(10 * time.Second)
		w.saw("unhealthy 0a: 503")
		if since := w.snapshot().Slots[0].Worker.Sick; time.Since(since) != 0 {
			t.Errorf("since %v", since)
		}
		w.pass(time.Hour)
		sick = nil
		w.pass(10 * time.Second)
		w.saw("unhealthy 0a: 503", "healthy 0a")
		if len(w.events) != 2 || !w.snapshot().Slots[0].Worker.Sick.IsZero() {
			t.Error(w.events)
		}
		w.expect()
	})
}

// TestHealthTimeout: a check is not waited for for longer than it may take.
func TestHealthTimeout(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.Health.Check = func(ctx context.Context, seat Seat) error { <-ctx.Done(); return ctx.Err() }
		w.serve(1)
		w.pass(33*time.Second - 1)
		if len(w.events) > 0 {
			t.Fatal(w.events)
		}
		w.pass(1)
		w.saw("unhealthy 0a: context deadline exceeded")
	})
}

// TestUnhealthyEverywhere: where all workers are unhealthy, their successors, too, they are replaced one at a time, and ever more
// rarely.
func TestUnhealthyEverywhere(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.Health.Check = func(context.Context, Seat) error { return errors.New("no database") }
		w.cfg.Health.Replace = true
		w.serve(4)
		starts := func(d time.Duration) (n int) {
			for end := time.Now().Add(d); time.Now().Before(end); w.pass(time.Second) {
				for _, line := range w.lines {
					if name, ok := strings.CutSuffix(line, " starts"); ok {
						n++
						w.ready(name)
						for _, f := range w.fakes {
							if f.draining {
								f.end(Exit{})
							}
						}
					}
				}
				w.lines = nil
			}
			return n
		}
		if n := starts(time.Hour); n < 12 || n > 25 {
			t.Errorf("%d workers were started in the first hour", n)
		}
		if n := starts(time.Hour); n < 11 || n > 13 {
			t.Errorf("%d workers were started in another hour, want one in 5 minutes", n)
		}
	})
}

// TestUnhealthyStays: unhealthy workers that are not to be replaced go on.
func TestUnhealthyStays(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.Health.Check = func(context.Context, Seat) error { return errors.New("no database") }
		w.serve(2)
		w.pass(time.Hour)
		w.expect()
		w.saw("unhealthy 0a: no database")
	})
}

// TestMaxRestarts: when more workers of a slot than may have died young in a row, all are told to finish, and Run says why.
func TestMaxRestarts(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxRestarts = 2
		w.words = "no such table"
		w.serve(2)
		w.pass(time.Minute)
		w.exits("0a", 1)
		w.expect("empty 0", "0b starts")
		w.exits("0b", 1)
		w.after(100*time.Millisecond, "0c starts")
		w.ready("0c")
		w.pass(time.Minute) // which has lived long enough
		w.lines = nil
		w.exits("0c", 1)
		w.exits("0d", 1)
		w.pass(time.Second)
		w.lines = nil
		w.runs()
		w.exits("0e", 3)
		w.expect("empty 1", "1a drains")
		w.saw("gave up: exited with status 3 before it was ready")
		w.runs()
		w.exits("1a", 0)
		if err := w.ends(); !errors.Is(err, ErrGaveUp) || !strings.Contains(err.Error(), "slot 0, 3 in a row") {
			t.Error(err)
		}
	})
}
