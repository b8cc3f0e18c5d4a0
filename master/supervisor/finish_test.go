package supervisor

import "testing"

// TestFinished is rows A7 and A8: a worker that drains and has nothing left is ended, and killed if
// that does not help; so are the others of its group when the first process has ended.
func TestFinished(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.reload()
		w.ready("0b")
		w.expect("0b starts", "fill 0b", "0a drains")
		w.finishes("0a")
		w.expect("0a TERM")
		w.after(w.cfg.KillTimeout, "0a KILL")
		w.reload()
		w.ready("0c")
		w.expect("0c starts", "fill 0c", "0b drains")
		w.exitsAlone("0b", Exit{}, 34)
		w.expect()
		w.finishes("0b")
		w.expect("0b TERM")
		w.restEnds("0b")
		w.finishes("0c") // it does not drain
		w.expect()
		w.holds("0c")
	})
}
