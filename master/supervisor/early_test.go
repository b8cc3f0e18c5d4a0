package supervisor

import (
	"testing"
	"time"
)

// TestBegun: a worker that serves an empty slot's clients already, and is not known to be ready, is not cancelled by what makes it needless: it
// takes the slot, and finishes what it has as any other.
func TestBegun(t *testing.T) {
	for name, tt := range map[string]struct {
		do    func(w *world)
		begun []string // what happens when it has begun
		not   []string
	}{
		"reload": {func(w *world) { w.reload() }, []string{"fill 0b", "0c starts"}, []string{"0b drains", "0b TERM", "0c starts"}},
		"scale":  {func(w *world) { w.scale(1) }, []string{"fill 1b", "resize 1", "1b drains"}, []string{"resize 1", "1b drains", "1b TERM"}},
		"upgrade": {func(w *world) {
			go w.s.Quiesce(true, func() error { return nil })
			w.settle()
		}, []string{"fill 0b"}, []string{"0b drains", "0b TERM", "0c starts"}},
		"stop": {func(w *world) { w.s.Stop(); w.settle() }, []string{"fill 0b", "empty 0", "0b drains", "empty 1", "1a drains"}, []string{"0b drains", "0b TERM", "empty 1", "1a drains"}},
	} {
		for _, begun := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				play(t, func(w *world) {
					w.serve(2)
					died, next, want := "0a", "0b", tt.not
					if name == "scale" {
						died, next = "1a", "1b"
					}
					w.exits(died, 1)
					w.lines = nil
					w.worker(next).begun = begun
					if begun {
						want = tt.begun
					}
					tt.do(w)
					w.expectAnyOrder(want...)
				})
			})
		}
	}
}

// TestBegunUnheard: a worker that is cancelled and would have heard of it before it begins is not told to end by a signal as well: it may have begun, and
// the master did not know. If it says so then, it has the time of a drain, else that of an end.
func TestBegunUnheard(t *testing.T) {
	for _, begun := range []bool{true, false} {
		play(t, func(w *world) {
			w.serve(1)
			w.exits("0a", 1)
			w.worker("0b").heeds = true
			w.lines = nil
			w.reload()
			w.expect("0b drains", "0c starts")
			within := w.cfg.KillTimeout
			w.pass(time.Second)
			if begun {
				w.ready("0b")
				within = w.cfg.DrainTimeout
			}
			w.ready("0c")
			w.expect("fill 0c")
			w.after(within-time.Second, "0b TERM") // since it was told
		})
	}
}
