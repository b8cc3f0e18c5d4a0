package supervisor

import "testing"

// TestProgress: whoever takes something of what waits is alive, and so is whoever has nothing to take.
func TestProgress(t *testing.T) {
	var p Progress
	for i, look := range []struct {
		waits bool
		taken uint64
		alive bool
	}{
		{false, 0, true},
		{true, 0, true}, // it has just come
		{true, 0, false},
		{true, 0, false},
		{true, 1, true},
		{true, 1, false},
		{false, 1, true}, // it was taken back
		{true, 1, true},
		{true, 9, true},
		{true, 3, true}, // counted anew, after an upgrade
	} {
		if alive := p.Note(look.waits, look.taken); alive != look.alive {
			t.Errorf("look %d: alive %v", i, alive)
		}
	}
}
