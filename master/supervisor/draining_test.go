package supervisor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// However often there is a reload, or a drain of one slot, no more workers of a slot drain at a time than may: the oldest goes first, and that is logged.
func TestMaxDraining(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxDraining = 2
		w.serve(2)
		var log strings.Builder
		w.s.log = hclog.New(&hclog.LoggerOptions{Output: &log, DisableTime: true})
		reload := func(first, second string) {
			t.Helper()
			w.pass(time.Minute)
			r := w.reload()
			w.ready(first)
			w.ready(second)
			r.succeeds()
			w.lines = nil
		}
		reload("0b", "1b")
		reload("0c", "1c")
		w.shows("0c serving, 1c serving; 0a draining; 1a draining; 0b draining; 1b draining")
		w.pass(time.Minute)
		w.replace(0) // of the same generation
		w.ready("0d")
		w.expect("0d starts", "fill 0d", "0c drains", "0a TERM")
		w.shows("0d serving, 1c serving; 0a stopping; 1a draining; 0b draining; 1b draining; 0c draining")
		line := `[INFO]  worker is ended before its time: of its slot more workers linger and drain than may: slot=0 pid=1 generation=1 state=draining most=2 left=58m0s change_with=--max-draining` + "\n"
		if strings.Count(log.String(), line) != 1 {
			t.Errorf("log\n%s\nwant %s", log.String(), line)
		}
		w.exits("0a", 0)
		w.exits("0b", 0)
		reload("0e", "1d") // there is room again in slot 0, and not in slot 1
		w.shows("0e serving, 1d serving; 1a stopping; 1b draining; 0c draining; 0d draining; 1c draining")
		w.s.Stop() // when all go, none is in the way
		w.settle()
		w.shows("-, -; 1a stopping; 1b draining; 0c draining; 0d draining; 1c draining; 0e draining; 1d draining")
	})
}

// Workers that linger count as well, and a slot that is removed and is there again is the same.
func TestMaxDrainingLingers(t *testing.T) {
	playLinger(t, 1, func(w *world, _ func(string)) {
		w.s.cfg.MaxDraining = 1
		w.pass(time.Second)
		w.takeOver("0b")
		w.shows("0b serving; 0a lingering")
		w.pass(time.Second)
		w.replace(0)
		w.ready("0c")
		w.expect("0c starts", "fill 0c", "0a drains", "0a TERM")
		w.shows("0c serving; 0a stopping; 0b lingering")
	})
	play(t, func(w *world) {
		w.cfg.MaxDraining = 1
		w.serve(2)
		for _, name := range []string{"1b", "1c"} {
			w.pass(time.Second)
			w.scale(1)
			w.scale(2)
			w.ready(name)
		}
		w.scale(1)
		w.shows("0a serving; 1a stopping; 1b stopping; 1c draining")
	})
}

// Who stands by does not count: it may be needed yet.
func TestMaxDrainingStandby(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxDraining, w.cfg.Probation = 1, time.Minute
		w.serve(1)
		w.pass(time.Second)
		w.takeOver("0b")
		w.replace(0)
		w.ready("0c")
		w.expect("0c starts", "fill 0c")
		w.shows("0c serving (0b standby); 0a draining")
		w.after(time.Minute, "0b drains", "0a TERM")
	})
}

// The ends of what was replaced together are as far from each other as DrainSpread allows; nobody has longer than DrainTimeout.
func TestDrainSpread(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.DrainTimeout, w.cfg.DrainSpread = time.Hour, 20*time.Minute
		w.serve(4)
		r := w.reload()
		for slot := range 4 {
			w.ready(fmt.Sprint(slot, "b"))
		}
		r.succeeds()
		w.lines = nil
		w.after(45*time.Minute, "3a TERM")
		w.exits("3a", 0)
		for slot := 2; slot >= 0; slot-- {
			w.after(5*time.Minute, fmt.Sprint(slot, "a TERM"))
			w.exits(fmt.Sprint(slot, "a"), 0)
		}
	})
	playLinger(t, 2, func(w *world, _ func(string)) { // lingering and draining together
		w.s.cfg.DrainTimeout, w.s.cfg.DrainSpread = time.Hour, time.Hour
		w.takeOver("1b")
		if d := w.snapshot().Draining[0]; d.Deadline != d.Since.Add(30*time.Minute) {
			t.Errorf("%+v", d)
		}
	})
}
