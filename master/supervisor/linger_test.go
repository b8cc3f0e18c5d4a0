package supervisor

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// idle is how long workers linger after they were named, in scripts.
const idle = time.Minute

// playLinger is play with n workers that serve, and that linger until nobody has named them for idle.
func playLinger(t *testing.T, n int, script func(w *world, name func(string))) {
	t.Helper()
	play(t, func(w *world) {
		named := make(map[Link]time.Time)
		w.cfg.LingerUntil = func(link Link, replaced time.Time) time.Time {
			w.inOrder()
			if last := named[link]; last.After(replaced) {
				replaced = last
			}
			return replaced.Add(idle)
		}
		w.serve(n)
		script(w, func(worker string) { w.inOrder(); named[w.worker(worker)] = time.Now(); w.inOrder() })
	})
}

// takeOver lets the next worker of a slot take it over.
func (w *world) takeOver(name string) {
	w.Helper()
	c := w.replace(int(name[0] - '0'))
	w.ready(name)
	w.pass(w.cfg.Probation)
	c.succeeds()
	w.lines = nil
}

// A worker that was replaced is left alone until no client has come back to it for a while. The log says so, and by what that
// is changed.
func TestLinger(t *testing.T) {
	playLinger(t, 1, func(w *world, name func(string)) {
		var log strings.Builder
		w.s.log = hclog.New(&hclog.LoggerOptions{Output: &log, DisableTime: true})
		r := w.reload()
		w.ready("0b")
		r.succeeds()
		w.expect("0b starts", "fill 0b")
		w.shows("0b serving; 0a lingering")
		replaced := time.Now()
		if d := w.snapshot().Draining[0]; d.Since != replaced || d.Until != replaced.Add(idle) || d.Deadline != replaced.Add(w.cfg.DrainTimeout) {
			t.Errorf("%+v", d)
		}
		w.after(50 * time.Second)
		name("0a")
		w.after(30 * time.Second) // for it is asked again
		if d := w.snapshot().Draining[0]; d.Since != replaced || d.Until != replaced.Add(50*time.Second+idle) {
			t.Errorf("%+v", d)
		}
		w.after(30*time.Second, "0a drains")
		w.shows("0b serving; 0a draining")
		if d := w.snapshot().Draining[0]; !d.Until.IsZero() || d.Deadline != replaced.Add(w.cfg.DrainTimeout) {
			t.Errorf("%+v", d)
		}
		w.after(w.cfg.DrainTimeout-110*time.Second, "0a TERM")
		w.after(w.cfg.KillTimeout, "0a KILL")
		w.saw("ready 0b", "lingering 0a", "reloaded 2", "draining 0a", "terminated 0a", "killed 0a")
		for _, line := range []string{
			"[INFO]  worker lingers: it was replaced, and clients may come back to it: slot=0 pid=1 generation=1 until=" + replaced.Add(idle).UTC().Format(time.RFC3339Nano) + " at_most=1h0m0s change_with=\"--session-idle, --drain-affinity, --drain-timeout\"\n",
			"[INFO]  worker lingers no longer, and drains: slot=0 pid=1 generation=1 lingered=1m50s reason=\"no request has named it for so long\" change_with=\"--session-idle, --drain-affinity, --drain-timeout\"\n",
		} {
			if strings.Count(log.String(), line) != 1 {
				t.Errorf("log\n%s\nwant %s", log.String(), line)
			}
		}
	})
}

// However often clients come back, a generation ends with the drain timeout.
func TestLingerIsBounded(t *testing.T) {
	playLinger(t, 1, func(w *world, name func(string)) {
		w.takeOver("0b")
		replaced := time.Duration(0) // ago
		for ; replaced < w.cfg.DrainTimeout-idle/4; replaced += idle / 4 {
			w.after(idle / 4)
			name("0a")
		}
		w.shows("0b serving; 0a lingering")
		if d := w.snapshot().Draining[0]; d.Until != d.Deadline {
			t.Errorf("%+v", d)
		}
		w.after(idle/4, "0a drains", "0a TERM")
		w.after(w.cfg.KillTimeout, "0a KILL")
	})
	playLinger(t, 1, func(w *world, name func(string)) { // so it drains by itself, and has what is left
		w.takeOver("0b")
		w.after(50 * time.Second)
		w.leaves("0a")
		w.expect("0a drains")
		w.after(w.cfg.DrainTimeout-50*time.Second-lastMoment, "0a TERM")
	})
}

func TestNobodyLingers(t *testing.T) {
	playLinger(t, 1, func(w *world, _ func(string)) {
		w.s.cfg.LingerUntil = func(_ Link, replaced time.Time) time.Time { return replaced } // none that is in the future
		w.replace(0)
		w.ready("0b")
		w.expect("0b starts", "fill 0b", "0a drains")
	})
	playLinger(t, 1, func(w *world, _ func(string)) {
		w.s.cfg.DrainTimeout = 0
		w.replace(0)
		w.ready("0b")
		w.expect("0b starts", "fill 0b", "0a drains", "0a TERM")
	})
}

// A worker stands by first, and lingers when its successor has lasted.
func TestLingerAfterProbation(t *testing.T) {
	playLinger(t, 2, func(w *world, _ func(string)) {
		w.s.cfg.Probation = probation
		r := w.reload()
		w.ready("0b")
		w.ready("1b")
		w.shows("0b serving (0a standby), 1b serving (1a standby)")
		w.pass(probation)
		r.succeeds()
		w.shows("0b serving, 1b serving; 0a lingering; 1a lingering")
		w.expect("0b starts", "fill 0b", "1b starts", "fill 1b")
		w.pass(idle - 1)
		w.expect()
		w.pass(1)
		w.expectAnyOrder(w.drained("0a", "1a")...)
	})
	playLinger(t, 2, func(w *world, _ func(string)) { // a reload that fails keeps none of its workers
		w.s.cfg.Probation = probation
		r := w.reload()
		w.ready("0b")
		w.exits("1b", 1)
		r.fails()
		w.expect("0b starts", "fill 0b", "1b starts", "fill 0a", "0b drains")
		w.shows("0a serving, 1a serving; 0b draining")
	})
	playLinger(t, 1, func(w *world, _ func(string)) { // nor does it end those that linger
		w.takeOver("0b")
		r := w.reload()
		w.exits("0c", 1)
		r.fails()
		w.expect("0c starts")
		w.shows("0b serving; 0a lingering")
	})
}

// drained is what happens when these drain, in any order.
func (w *world) drained(names ...string) (lines []string) {
	for _, name := range names {
		lines = append(lines, name+" drains")
	}
	return lines
}

// Several generations of a slot linger at once, each for its own clients.
func TestGenerationsLinger(t *testing.T) {
	playLinger(t, 1, func(w *world, name func(string)) {
		for _, next := range []string{"0b", "0c", "0d"} {
			r := w.reload()
			w.ready(next)
			r.succeeds()
			w.pass(10 * time.Second)
			name("0b")
		}
		w.lines = nil
		w.shows("0d serving; 0a lingering; 0b lingering; 0c lingering")
		w.after(30*time.Second, "0a drains")
		w.after(20*time.Second, "0c drains")
		w.after(10*time.Second, "0b drains")
		w.holds("0d")
	})
}

// What can happen to a worker that lingers. Nothing of it is the slot's affair.
func TestLingeringEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		happens func(w *world)
		did     []string
		shows   string
	}{
		"exits":             {func(w *world) { w.exits("0a", 0) }, nil, "0b serving"},
		"dies":              {func(w *world) { w.exits("0a", 1) }, nil, "0b serving"},
		"leaves":            {func(w *world) { w.leaves("0a") }, []string{"0a drains"}, "0b serving; 0a draining"},
		"finishes":          {func(w *world) { w.s.Finishing(w.worker("0a")) }, nil, "0b serving; 0a draining"},
		"has nothing left":  {func(w *world) { w.finishes("0a") }, nil, "0b serving; 0a lingering"}, // it was not told to finish
		"leaves others":     {func(w *world) { w.exitsAlone("0a", Exit{Code: 1}, 101) }, []string{"0a drains"}, "0b serving; 0a stopping"},
		"is not heard":      {func(w *world) { w.mute("0a", true); w.pass(5 * time.Second) }, []string{"0a KILL"}, "0b serving"},
		"successor dies":    {func(w *world) { w.exits("0b", 1) }, []string{"empty 0", "0c starts"}, "- (0c starting); 0a lingering"},
		"slot is removed":   {func(w *world) { w.scale(2); w.ready("1a"); w.scale(1) }, []string{"1a starts", "resize 2", "fill 1a", "resize 1"}, "0b serving; 0a lingering; 1a lingering"},
		"drained by asking": {func(w *world) { w.drainLingering(1) }, []string{"0a drains"}, "0b serving; 0a draining"},
	} {
		t.Run(name, func(t *testing.T) {
			playLinger(t, 1, func(w *world, _ func(string)) {
				w.s.cfg.Watchdog, w.s.cfg.ReplaceHung = 4*time.Second, true
				w.takeOver("0b")
				tt.happens(w)
				w.expect(tt.did...)
				w.shows(tt.shows)
				if sl := w.snapshot().Slots[0]; sl.Restarts != 0 && name != "successor dies" {
					t.Errorf("restarts %d", sl.Restarts)
				}
			})
		})
	}
}

// A worker that lingers is watched, also while its slot's worker is on probation, which is not harmed.
func TestLingeringHangs(t *testing.T) {
	playLinger(t, 1, func(w *world, name func(string)) {
		w.s.cfg.Watchdog = 4 * time.Second
		w.takeOver("0b")
		w.s.cfg.Probation = time.Hour
		r := w.reload()
		w.ready("0c")
		w.lines = nil
		w.mute("0a", true)
		w.pass(5 * time.Second)
		w.saw("lingering 0a", "ready 0c", "hung 0a")
		if d := w.snapshot().Draining[0]; d.State != Lingering || d.Silent.IsZero() {
			t.Errorf("%+v", d)
		}
		w.mute("0a", false)
		w.pass(time.Second)
		w.saw("hung 0a", "answers 0a")
		w.expect()
		r.waits()
		w.shows("0c serving (0b standby); 0a lingering")
	})
}

func TestStopWhileLingering(t *testing.T) {
	playLinger(t, 1, func(w *world, name func(string)) {
		w.takeOver("0b")
		w.pass(w.cfg.StopTimeout)
		w.s.Stop()
		w.expect("empty 0", "0b drains", "0a drains")
		w.pass(w.cfg.StopTimeout)
		w.expectAnyOrder("0a TERM", "0b TERM")
		w.exits("0a", 0)
		w.exits("0b", 0)
		w.ends()
	})
	playLinger(t, 1, func(w *world, name func(string)) {
		w.takeOver("0b")
		w.kill()
		w.expectAnyOrder("empty 0", "0b drains", "0a drains", "0a KILL", "0b KILL")
		w.ends()
	})
}

// Those that linger are processes that run: the error names them, and what ends it.
func TestLingeringIsBounded(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxProcesses = 3
		w.cfg.LingerUntil = func(_ Link, replaced time.Time) time.Time { return replaced.Add(time.Hour) }
		w.serve(1)
		w.takeOver("0b")
		w.takeOver("0c")
		want := "3 worker processes run, and no more may, of which 2 linger for their clients; end that with handfast drain --now"
		for _, c := range []*call{w.reload(), w.replace(0)} {
			if err := c.fails(); !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		}
		if n, err := w.s.DrainLingering(func(seat Seat) bool { return seat.Generation == 7 }); n != 0 || err != nil {
			t.Error(n, err)
		}
		w.exits("0a", 0)
		w.takeOver("0d")
		w.drainLingering(2)
		w.expectAnyOrder("0b drains", "0c drains")
		if err := w.reload().fails(); !strings.Contains(err.Error(), "of which some still drain; wait for them, or shorten the drain timeout") {
			t.Error(err)
		}
	})
}

func (w *world) drainLingering(want int) {
	w.Helper()
	if n, err := w.s.DrainLingering(func(Seat) bool { return true }); n != want || err != nil {
		w.Errorf("%d drain, %v; want %d", n, err, want)
	}
}

// The next program lets workers linger on, in no slot, until the same deadline.
func TestLingerAcrossAnUpgrade(t *testing.T) {
	fdtest.NoLeaks(t)
	state := saved{Generation: 2, Published: 1, Wanted: 1, Slots: []savedSlot{{Generation: 2}}}
	for i, word := range []string{"serves", "soon", "later"} {
		p := start(t, Spec{Command: []string{"sleep", "1000"}})
		link, _ := json.Marshal(word)
		w := savedWorker{Seat: Seat{0, 1, 1}, PID: p.PID(), State: Lingering, Link: link, ReadyAt: time.Now(), Since: time.Now().Truncate(0), Deadline: time.Now().Add(time.Hour).Truncate(0)}
		if i == 0 {
			w.Generation, w.Current, w.State, w.Deadline = 2, true, Serving, time.Time{}
		}
		state.Workers = append(state.Workers, w)
	}
	r := resume(t, state, func(cfg *Config) {
		cfg.LingerUntil = func(link Link, replaced time.Time) time.Time {
			if link.(kept).name == "soon" {
				return replaced
			}
			return replaced.Add(time.Hour)
		}
	})
	r.fills("serves")
	<-r.links["soon"].drained
	for _, w := range r.saves().Workers {
		before := state.Workers[slices.IndexFunc(state.Workers, func(b savedWorker) bool { return b.PID == w.PID })]
		want := before.State
		if string(w.Link) == `"soon"` {
			want = Draining
		}
		if w.State != want || want == Lingering && (!w.Since.Equal(before.Since) || !w.Deadline.Equal(before.Deadline)) || w.Deadline.After(before.Deadline.Add(time.Second)) {
			t.Errorf("saved again: %+v", w)
		}
	}
	r.ends()
}
