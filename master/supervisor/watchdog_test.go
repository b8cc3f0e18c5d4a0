package supervisor

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// watch makes the watchdog wait for 4 s, which is a beat each second.
func (w *world) watch(replace bool) { w.cfg.Watchdog, w.cfg.ReplaceHung = 4*time.Second, replace }

// TestWatchdogReports: a worker that does not answer is reported once, and once when it does again.
func TestWatchdogReports(t *testing.T) {
	play(t, func(w *world) {
		var log strings.Builder
		w.cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &log})
		w.watch(false)
		w.serve(2)
		w.pass(10 * time.Second)
		w.mute("0a", true)
		w.pass(4*time.Second - 1)
		if len(w.events) > 0 {
			t.Fatal(w.events)
		}
		w.pass(1)
		w.saw("hung 0a")
		since := w.snapshot().Slots[0].Worker.Silent
		if ago := time.Since(since); ago != 4*time.Second {
			t.Errorf("silent for %v", ago)
		}
		if other := w.snapshot().Slots[1].Worker; !other.Silent.IsZero() {
			t.Error("the other one is silent")
		}
		w.pass(time.Hour)
		w.mute("0a", false)
		w.pass(time.Second)
		w.saw("hung 0a", "answers 0a")
		w.pass(time.Hour)
		if !w.snapshot().Slots[0].Worker.Silent.IsZero() || len(w.events) != 2 {
			t.Errorf("events %v", w.events)
		}
		w.expect()
		said := log.String()
		if strings.Count(said, "[WARN]  worker does not answer the watchdog: slot=0 pid=1 generation=1 since="+since.UTC().Format(time.RFC3339Nano)+" replaced=false\n") != 1 ||
			strings.Count(said, "worker answers the watchdog again: slot=0 pid=1 generation=1\n") != 1 {
			t.Error(said)
		}
	})
}

// TestWatchdogForgets: one answer in time is enough.
func TestWatchdogForgets(t *testing.T) {
	play(t, func(w *world) {
		w.watch(true)
		w.serve(1)
		for range 5 {
			w.mute("0a", true)
			w.pass(3 * time.Second)
			w.mute("0a", false)
			w.pass(time.Second)
		}
		w.expect()
	})
}

// TestWatchdogReplaces: a worker that does not answer and is to be replaced ends as one that dies.
func TestWatchdogReplaces(t *testing.T) {
	play(t, func(w *world) {
		w.watch(true)
		w.words = "waiting for a lock"
		w.serve(2)
		w.pass(time.Minute)
		w.mute("1a", true)
		w.after(4*time.Second, "1a KILL", "empty 1", "1b starts")
		w.saw("hung 1a", "killed 1a", "started 1b")
		w.saw("killed 1a", "exited 1a signal killed")
		w.ready("1b")
		w.expect("fill 1b")
		w.holds("0a 1b")
		end := w.snapshot().Slots[1].LastEnd
		if end == nil || end.Why != "did not answer for 4s (watchdog)" || end.PID != 2 || end.LastWords != w.words {
			t.Errorf("%+v", end)
		}
		if n := w.snapshot().Slots[1].Restarts; n != 1 {
			t.Errorf("%d restarts", n)
		}
		w.mute("1b", true) // young
		w.after(4*time.Second, "1b KILL", "empty 1")
		w.after(w.cfg.BackoffMin, "1c starts")
	})
}

// TestWatchdogUnkillable: a worker that not even SIGKILL ends is given up, as ever.
func TestWatchdogUnkillable(t *testing.T) {
	play(t, func(w *world) {
		w.watch(true)
		w.serve(1)
		w.worker("0a").unkillable = true
		w.mute("0a", true)
		w.after(4*time.Second, "0a KILL", "empty 0", "0b starts")
		w.ready("0b")
		w.expect("fill 0b")
		w.pass(reapTimeout)
		w.shows("0b serving")
	})
}

// TestWatchdogAsksWhoServes: and nobody else, nor after that.
func TestWatchdogAsksWhoServes(t *testing.T) {
	play(t, func(w *world) {
		w.watch(true)
		w.run()
		w.mute("0a", true)
		w.pass(10 * time.Second) // starts
		w.mute("0a", false)
		w.ready("0a")
		w.pass(4 * time.Second)
		if n := w.worker("0a").pings; n != 4 {
			t.Errorf("asked %d times in 4 s", n)
		}
		w.mute("0a", true)
		w.pass(3 * time.Second)
		w.reload()
		w.ready("0b") // 0a drains
		w.pass(time.Minute)
		w.expect("resize 1", "0a starts", "fill 0a", "0b starts", "fill 0b", "0a drains")
	})
	play(t, func(w *world) {
		w.serve(1)
		w.pass(time.Hour)
		if n := w.worker("0a").pings; n != 0 {
			t.Errorf("without a watchdog it is asked %d times", n)
		}
	})
}

// TestWatchdogDuringReload: a new worker that hangs ends the reload, as one that dies.
func TestWatchdogDuringReload(t *testing.T) {
	play(t, func(w *world) {
		w.watch(true)
		w.serve(2)
		reload := w.reload()
		w.ready("0b")
		w.mute("0b", true)
		w.pass(4 * time.Second)
		if err := reload.fails(); !strings.Contains(err.Error(), "slot 0: worker did not answer for 4s (watchdog)") {
			t.Error(err)
		}
		w.shows("- (0c starting), 1a serving; 0a draining; 1b stopping")
	})
}

// TestWatchdogOfSleeper: while the supervisor itself does not run, for whatever reason and for however
// long, no time passes for the watchdog. When it wakes answers may still be unread.
func TestWatchdogOfSleeper(t *testing.T) {
	play(t, func(w *world) {
		w.watch(true)
		w.cfg.OnEventInLoop = func(e Event) {
			if e.Kind == Scaled {
				time.Sleep(time.Hour)
			}
		}
		w.serve(1)
		for range 3 {
			go w.s.Scale(1)
			w.settle()
			w.mute("0a", true)
			w.pass(time.Hour)
			w.mute("0a", false)
			w.pass(time.Second)
		}
		if slices.Contains(w.events, "hung 0a") {
			t.Error(w.events)
		}
		w.expect()
	})
}
