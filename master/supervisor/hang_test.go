package supervisor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hanging makes something of a world hang until the channel is closed.
type hanging func(w *world, over <-chan struct{})

// ofSlot1 are those that hang for the second worker of slot 1.
var ofSlot1 = map[string]hanging{
	"link open": func(w *world, over <-chan struct{}) {
		open := w.cfg.NewLink
		w.cfg.NewLink = func(seat Seat) (Link, error) { w.hangs(seat, over); return open(seat) }
	},
	"output": func(w *world, over <-chan struct{}) {
		open := w.cfg.NewOutput
		w.cfg.NewOutput = func(seat Seat) (Output, error) { w.hangs(seat, over); return open(seat) }
	},
	"start of the process": func(w *world, over <-chan struct{}) {
		start := w.cfg.Start
		w.cfg.Start = func(spec Spec) (Process, error) { w.hangs(w.started(spec).seat, over); return start(spec) }
	},
	"start that fails": func(w *world, over <-chan struct{}) {
		open := w.cfg.NewLink
		w.cfg.NewLink = func(seat Seat) (Link, error) {
			if w.hangs(seat, over) {
				return nil, errors.New("stale file handle")
			}
			return open(seat)
		}
	},
}

// hangs waits if slot 1 is to get a worker and has had one, and tells whether it did.
func (w *world) hangs(seat Seat, over <-chan struct{}) bool {
	w.order.Lock()
	later := seat.Slot == 1 && slices.ContainsFunc(w.fakes, func(f *fake) bool { return f.name == "1a" && f.over })
	w.order.Unlock()
	select {
	case <-over:
		return false
	default:
	}
	if later {
		<-over
	}
	return later
}

// TestStartHangs: while the start of a worker hangs, the other slots go on: workers that die get successors, the number of
// slots changes, and the supervisor answers. The slot's next start is not made before this one has come to an end, a reload
// fails for that when the worker is not ready in time, and a stop comes to an end.
func TestStartHangs(t *testing.T) {
	for name, hang := range ofSlot1 {
		t.Run(name, func(t *testing.T) {
			play(t, func(w *world) {
				over := make(chan struct{})
				end := sync.OnceFunc(func() { close(over) })
				defer end()
				hang(w, over)
				w.serve(2)
				w.exits("1a", 1)
				w.pass(time.Second)
				if slot := w.snapshot().Slots[1]; slot.Next == nil || slot.Next.PID != 0 || slot.Next.State != Starting {
					t.Errorf("%+v, want one that starts and has no process", slot.Next)
				}
				w.lines = nil

				w.exits("0a", 1)
				w.pass(startDelay)
				w.ready("0b")
				w.expect("empty 0", "0b starts", "fill 0b")
				w.answers()
				if err := w.s.Scale(3); err != nil {
					t.Error(err)
				}
				w.pass(startDelay)
				w.ready("2a")

				r := w.reload()
				w.ready("0c")
				w.pass(startDelay)
				r.waits()
				w.pass(w.cfg.ReadyTimeout)
				if err := r.fails(); !strings.Contains(err.Error(), "slot 1: "+errStartHangs.Error()) {
					t.Error(err)
				}
				r = w.reload()
				w.pass(startDelay)
				w.ready("0d")
				if err := r.fails(); !strings.Contains(err.Error(), errStartHangs.Error()) { // not a third at the same time
					t.Error(err)
				}
				w.answers()

				end() // which comes back is not needed any more, and ends; the slot gets another
				w.pass(w.cfg.BackoffMax)
				w.ready(w.latest(1))
				if d := w.snapshot().Draining; slices.ContainsFunc(d, func(w *WorkerStatus) bool { return w.Slot == 1 }) {
					t.Errorf("%+v: of those whose start hung some are left", d)
				}
			})
		})
	}
}

// TestReloadWhileStartsHang: a reload that fails since two starts of an empty slot hang already does not end the one that is
// waited for: nobody would start another.
func TestReloadWhileStartsHang(t *testing.T) {
	play(t, func(w *world) {
		over := make(chan struct{})
		end := sync.OnceFunc(func() { close(over) })
		defer end()
		ofSlot1["link open"](w, over)
		w.serve(2)
		w.exits("1a", 1)
		w.pass(startDelay)
		r := w.reload()
		w.pass(startDelay)
		w.ready("0b")
		w.pass(startDelay)
		w.exits("0b", 1) // so it fails while the second start of slot 1 hangs
		r.fails()
		w.pass(startDelay)
		w.ready("0c")
		r = w.reload()
		w.pass(startDelay)
		w.ready("0d")
		if err := r.fails(); !strings.Contains(err.Error(), errStartHangs.Error()) {
			t.Error(err)
		}
		if slot := w.snapshot().Slots[1]; slot.Next == nil && slot.NextStart.IsZero() {
			t.Errorf("%+v: nobody is to come", slot)
		}
		end()
		w.pass(w.cfg.BackoffMax)
		w.ready(w.latest(1))
		if w.snapshot().Slots[1].Worker == nil {
			t.Error("slot 1 stays empty")
		}
	})
}

// latest names the worker of a slot that was made last.
func (w *world) latest(slot int) (name string) {
	w.Helper()
	for _, f := range w.fakes {
		if f.seat.Slot == slot && !f.over {
			name = f.name
		}
	}
	return name
}

// answers wants the supervisor's loop to turn.
func (w *world) answers() {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := w.s.Ping(ctx); err != nil {
		w.Fatalf("the loop does not turn: %v", err)
	}
}

// TestEndWhileAStartHangs: who was told to end before there was a process is so since there is one, as far as anybody can see, and is given its time
// from then on.
func TestEndWhileAStartHangs(t *testing.T) {
	play(t, func(w *world) {
		over := make(chan struct{})
		end := sync.OnceFunc(func() { close(over) })
		defer end()
		ofSlot1["start of the process"](w, over)
		w.serve(2)
		w.exits("1a", 1)
		w.pass(time.Second)
		if err := w.s.Scale(1); err != nil {
			t.Fatal(err)
		}
		w.pass(w.cfg.KillTimeout - 1)
		end()
		w.settle()
		if all := w.snapshot().Draining; all[0].State != Stopping || !all[0].Since.Equal(time.Now()) {
			t.Errorf("%+v; want it to be stopping since now, %v", all[0], time.Now())
		}
		w.lines = nil
		w.after(w.cfg.KillTimeout, "1b KILL")
	})
}

// TestStopWhileAStartHangs: Run returns; what was started is ended when that is known.
func TestStopWhileAStartHangs(t *testing.T) {
	for name, hang := range ofSlot1 {
		t.Run(name, func(t *testing.T) {
			play(t, func(w *world) {
				over := make(chan struct{})
				end := sync.OnceFunc(func() { close(over) })
				defer end()
				hang(w, over)
				w.serve(2)
				w.exits("1a", 1)
				w.s.Stop()
				w.settle()
				w.exits("0a", 0)
				w.pass(w.cfg.KillTimeout + reapTimeout)
				if err := w.ends(); err != nil {
					t.Error(err)
				}
				end()
				w.settle()
			})
		})
	}
}

// TestLinkCloseHangs: nobody waits for it but the end of Run, and that not for ever. An upgrade is refused.
func TestLinkCloseHangs(t *testing.T) {
	play(t, func(w *world) {
		w.closing = make(chan struct{})
		end := sync.OnceFunc(func() { close(w.closing) })
		defer end()
		w.serve(2)
		w.exits("1a", 1)
		w.ready("1b")
		w.holds("0a 1b")
		r := w.reload()
		w.ready("0b")
		w.ready("1c")
		r.succeeds()

		upgrade := &call{w, make(chan error, 1)}
		go func() { upgrade.err <- w.s.Quiesce(false, func() error { t.Error("not quiet"); return nil }) }()
		w.pass(quietTimeout - 1)
		w.answers()
		upgrade.waits()
		w.pass(1)
		if err := upgrade.fails(); err != errBusy {
			t.Error(err)
		}

		w.s.Stop()
		for _, f := range w.fakes {
			f.end(Exit{})
		}
		w.pass(endTimeout - 1)
		w.runs()
		w.pass(1)
		if err := w.ends(); err != nil {
			t.Error(err)
		}
		end()
		w.settle()
	})
}

// hungWriter hangs until it is over.
type hungWriter struct{ over <-chan struct{} }

func (h hungWriter) Write(p []byte) (int, error) { <-h.over; return len(p), nil }

// TestLogAndEventsHang: neither a log nor a callback that hangs holds anything up, and the one not the other.
func TestLogAndEventsHang(t *testing.T) {
	for name, hang := range map[string]hanging{
		"log": func(w *world, over <-chan struct{}) {
			w.cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: hungWriter{over}, Level: hclog.Trace})
		},
		"events": func(w *world, over <-chan struct{}) {
			w.cfg.OnEvent = func(Event) { <-over }
		},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(w *world) {
				over := make(chan struct{})
				end := sync.OnceFunc(func() { close(over) })
				defer end()
				hang(w, over)
				w.serve(2)
				w.exits("1a", 1)
				w.ready("1b")
				w.holds("0a 1b")
				r := w.reload()
				w.ready("0b")
				w.ready("1c")
				r.succeeds()
				w.answers()
				if name == "log" {
					w.saw("exited 1a status 1", "ready 1b", "reloaded 2")
				}
				quiet := &call{w, make(chan error, 1)}
				go func() { quiet.err <- w.s.Quiesce(true, func() error { return nil }) }()
				w.pass(reportTimeout)
				quiet.succeeds()

				w.s.Stop()
				for _, f := range w.fakes {
					f.end(Exit{})
				}
				w.pass(reportTimeout)
				if err := w.ends(); err != nil {
					t.Error(err)
				}
				end()
				w.settle()
			})
		})
	}
}

// TestReporter: reports come in order, and further ones than are kept are left out and counted.
func TestReporter(t *testing.T) {
	began, over, got := make(chan struct{}), make(chan struct{}), []int(nil)
	lost := 0
	r := reporter{leftOut: func(n int) { lost += n }}
	r.add(func() { close(began); <-over })
	<-began
	const extra = 5
	for n := range maxReports + extra {
		r.add(func() { got = append(got, n) })
	}
	if r.isIdle() {
		t.Error("idle")
	}
	close(over)
	<-r.done()
	if lost != extra || len(got) != maxReports || !slices.IsSorted(got) {
		t.Errorf("%d came, sorted: %v; %d were left out", len(got), slices.IsSorted(got), lost)
	}
	if !r.isIdle() {
		t.Error("not idle")
	}
	<-r.done()
}
