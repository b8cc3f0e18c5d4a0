package supervisor

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// show is a snapshot in one line: each slot's worker, in parentheses who is to take it
// over, and who drains.
func (w *world) show() string {
	w.Helper()
	w.settle()
	w.inOrder()
	name := func(s *WorkerStatus) string {
		if s == nil {
			return "-"
		}
		return fmt.Sprintf("%s %v", w.fakes[s.PID-1].name, s.State)
	}
	var parts []string
	snapshot, _ := w.s.Snapshot()
	for i, sl := range snapshot.Slots {
		part := name(sl.Worker)
		if sl.Next != nil {
			part += " (" + name(sl.Next) + ")"
		}
		if sl.Standby != nil {
			part += " (" + name(sl.Standby) + ")"
		}
		if i >= snapshot.InUse {
			part += "?"
		}
		parts = append(parts, part)
	}
	line := strings.Join(parts, ", ")
	for _, d := range snapshot.Draining {
		line += "; " + name(d)
	}
	return line
}

func (w *world) shows(want string) {
	w.Helper()
	if got := w.show(); got != want {
		w.Fatalf("the snapshot shows\n\t%s\nwant\n\t%s", got, want)
	}
}

func (w *world) snapshot() *Snapshot {
	w.settle()
	w.inOrder()
	s, _ := w.s.Snapshot()
	return s
}

// A reload can be followed slot by slot.
func TestSnapshotOfReload(t *testing.T) {
	play(t, func(w *world) {
		w.create()
		w.shows("")
		w.cfg.Workers = 2
		w.s = nil
		w.run()
		w.shows("- (0a starting), - (1a starting)")
		w.ready("0a")
		w.ready("1a")
		w.shows("0a serving, 1a serving")
		if s := w.snapshot(); s.Reload != nil || s.Generation != 1 {
			t.Errorf("before the first reload: %+v", s)
		}
		w.pass(time.Minute)
		began := time.Now()
		generation, result, err := w.s.StartReload()
		if err != nil || generation != 2 {
			t.Fatalf("generation %d, %v", generation, err)
		}
		w.shows("0a serving (0b starting), 1a serving")
		progress := func(done int, ended bool) {
			t.Helper()
			r := w.snapshot().Reload
			if r.Generation != 2 || r.Done != done || r.Slots != 2 || !r.Began.Equal(began) || r.Ended.IsZero() == ended || r.Err != nil {
				t.Errorf("%+v, want %d done, ended: %v", r, done, ended)
			}
		}
		progress(0, false)
		w.ready("0b")
		w.shows("0b serving, 1a serving (1b starting); 0a draining")
		progress(1, false)
		if w.snapshot().Queued {
			t.Error("a reload is queued")
		}
		if generation, _, err := w.s.StartReload(); generation != 3 || err != nil || !w.snapshot().Queued {
			t.Errorf("the next one: generation %d, %v, %+v", generation, err, w.snapshot())
		}
		w.ready("1b")
		if err := <-result; err != nil {
			t.Error(err)
		}
		w.shows("0b serving (0c starting), 1b serving; 0a draining; 1a draining")
		w.exits("1a", 0)
		w.exits("0c", 1)
		w.shows("0b serving, 1b serving; 0a draining")
		if s := w.snapshot(); s.Reload.Err == nil || s.Reload.Ended.IsZero() || s.Reload.Done != 0 || s.Queued {
			t.Errorf("failed: %+v", s.Reload)
		}
		if end := w.snapshot().Slots[0].LastEnd; end == nil || end.Generation != 3 || end.PID == 0 || end.Why != "exited with status 1 before it was ready" {
			t.Errorf("the last end is %+v", end)
		}
		w.s.Stop()
		w.shows("-, -; 0a draining; 0b draining; 1b draining")
		if s := w.snapshot(); !s.Stopping {
			t.Error("does not show that it stops")
		}
	})
}

// A request's effect can be seen when its answer is there, and all that watch are woken.
func TestSnapshotShowsWhatWasDone(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		old, changed := w.s.Snapshot()
		if err := w.s.Scale(3); err != nil {
			t.Fatal(err)
		}
		if now, _ := w.s.Snapshot(); len(now.Slots) != 3 || now.InUse != 2 || len(old.Slots) != 2 {
			t.Errorf("%d slots, %d in use; before %d", len(now.Slots), now.InUse, len(old.Slots))
		}
		<-changed
		w.shows("0a serving, 1a serving, - (2a starting)?")
		w.ready("2a")
		w.shows("0a serving, 1a serving, 2a serving")
	})
}

// Nobody is answered before what they asked for can be seen.
func TestAnswerComesAfterSnapshot(t *testing.T) {
	play(t, func(w *world) {
		w.create()
		result := make(chan error, 1)
		w.s.generation = 7
		w.s.answer(result, nil)
		if len(result) > 0 {
			t.Error("answered before it can be seen")
		}
		seen := 0
		w.s.answers = append(w.s.answers, func() { now, _ := w.s.Snapshot(); seen = now.Generation })
		w.s.publishSnapshot()
		if len(result) != 1 || seen != 7 {
			t.Errorf("%d answers; when they came the snapshot was of generation %d", len(result), seen)
		}
	})
}

// Restarts, and why.
func TestSnapshotOfRestarts(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.pass(time.Hour)
		w.exits("0a", 3)
		sl := w.snapshot().Slots[0]
		if sl.Restarts != 1 || sl.LastEnd.Why != "exited with status 3" || !sl.LastEnd.At.Equal(time.Now()) || sl.Worker != nil {
			t.Errorf("%+v, %+v", sl, sl.LastEnd)
		}
		w.startErr = errors.New("no such program")
		w.exits("0b", 4)
		w.pass(100 * time.Millisecond)
		sl = w.snapshot().Slots[0]
		if sl.Restarts != 3 || sl.LastEnd.Why != "could not be started: no such program" || sl.LastEnd.PID != 0 || sl.Next != nil {
			t.Errorf("%+v, %+v", sl, sl.LastEnd)
		}
		if due := time.Until(sl.NextStart); due != 200*time.Millisecond {
			t.Errorf("the next start is due in %v", due)
		}
		w.startErr = nil
		w.pass(200 * time.Millisecond)
		w.ready("0d")
		sl = w.snapshot().Slots[0]
		started, since := time.Since(sl.Worker.Started), time.Since(sl.Worker.Since)
		if !sl.NextStart.IsZero() || started != 0 || since != 0 || !sl.Worker.Deadline.IsZero() {
			t.Errorf("%+v, %+v", sl, sl.Worker)
		}
		w.pass(w.cfg.MinUptime)
		w.reload()
		w.ready("0e")
		w.exits("0d", 0)
		if sl = w.snapshot().Slots[0]; sl.Restarts != 3 {
			t.Errorf("a worker that was replaced counts as restarted: %+v", sl)
		}
	})
}

func TestReplace(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		c := w.replace(1)
		w.expect("1b starts")
		again := w.replace(1)
		c.waits()
		w.shows("0a serving, 1a serving (1b starting)")
		w.ready("1b")
		w.expect("fill 1b", "1a drains")
		c.succeeds()
		again.succeeds()
		w.shows("0a serving, 1b serving; 1a draining")
		if w.worker("1b").seat.Generation != 1 || w.snapshot().Reload != nil {
			t.Error("it is a reload")
		}

		c = w.replace(0)
		w.expect("0b starts")
		w.exits("0b", 1)
		w.expect()
		if err := c.fails(); !strings.Contains(err.Error(), "slot 0 keeps what it had: worker exited with status 1") {
			t.Error(err)
		}
		w.after(time.Minute) // the old one goes on, and that is all

		for _, slot := range []int{-1, 2} {
			if err := w.replace(slot).fails(); !errors.Is(err, ErrNoSlot) {
				t.Errorf("slot %d: %v", slot, err)
			}
		}
	})
}

// TestReplaceOvertaken: a Replace that something else comes before says so.
func TestReplaceOvertaken(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		c := w.replace(0)
		w.expect("0b starts")
		r := w.reload()
		w.expect("0b drains", "0b TERM", "0c starts")
		if err := c.fails(); !errors.Is(err, errOvertaken) {
			t.Error(err)
		}
		if err := w.replace(1).fails(); !errors.Is(err, ErrReloading) {
			t.Error(err)
		}
		w.ready("0c")
		w.ready("1b")
		r.succeeds()
		w.lines = nil

		c = w.replace(1)
		w.s.Scale(1)
		if err := c.fails(); !errors.Is(err, errRemoved) {
			t.Error(err)
		}
		w.exits("0c", 1)
		if err := w.replace(0).fails(); !errors.Is(err, ErrEmpty) {
			t.Error(err)
		}
		w.ready("0d")
		c = w.replace(0)
		w.exits("0d", 1) // its successor is on the way
		w.ready("0e")
		c.succeeds()
		c = w.replace(0)
		w.s.Stop()
		if err := c.fails(); !errors.Is(err, ErrStopped) {
			t.Error(err)
		}
	})
}

// As many processes as there may be.
func TestReplaceIsBounded(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxProcesses = 2
		w.serve(1)
		w.replace(0)
		w.ready("0b")
		if err := w.replace(0).fails(); !strings.Contains(err.Error(), "2 worker processes") {
			t.Error(err)
		}
		w.exits("0a", 0)
		w.replace(0).waits()
		w.startErr = errors.New("no program")
		w.exits("0c", 0)
		if err := w.replace(0).fails(); !strings.Contains(err.Error(), "slot 0 keeps what it had: no program") {
			t.Error(err)
		}
	})
}

func (w *world) replace(slot int) *call {
	c := &call{w, make(chan error, 1)}
	go func() { c.err <- w.s.Replace(w.Context(), slot) }()
	w.settle()
	return c
}
