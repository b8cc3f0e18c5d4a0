package supervisor

import (
	"strings"
	"testing"
)

// TestLastWords: what a worker wrote last goes with its end into the event, the snapshot, and the error of a reload. Row C14.
func TestLastWords(t *testing.T) {
	const said = "; slot 0 keeps what it had; it wrote last:\nTraceback:\nModuleNotFoundError"
	for name, tt := range map[string]struct {
		fail func(w *world)
		kind EventKind
	}{
		"exits":          {func(w *world) { w.exits("0b", 1) }, WorkerExited},
		"is never ready": {func(w *world) { w.pass(w.cfg.ReadyTimeout) }, WorkerNotReady},
		"leaves":         {func(w *world) { w.leaves("0b") }, WorkerLeft},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(w *world) {
				heard := map[EventKind]string{}
				hear := w.cfg.OnEvent
				w.cfg.OnEvent = func(e Event) {
					if hear(e); e.LastWords != "" {
						heard[e.Kind] = e.LastWords
					}
				}
				w.words = "Traceback:\nModuleNotFoundError"
				w.serve(1)
				result := w.reload()
				tt.fail(w)
				if err := result.fails(); !strings.HasSuffix(err.Error(), said) {
					t.Errorf("%v", err)
				}
				if heard[tt.kind] != w.words {
					t.Errorf("events have %v", heard)
				}
				snapshot, _ := w.s.Snapshot()
				if end := snapshot.Slots[0].LastEnd; end == nil || end.LastWords != w.words || strings.Contains(end.Why, "Traceback") {
					t.Errorf("last end %+v", end)
				}
			})
		})
	}
}

// TestWordsElsewhere: nobody reads along, and that is said. Row C14.
func TestWordsElsewhere(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.NewOutput = nil
		w.serve(1)
		result := w.reload()
		w.exits("0b", 1)
		if err := result.fails(); !strings.HasSuffix(err.Error(), "; what it wrote is beside the log") {
			t.Errorf("%v", err)
		}
	})
}
