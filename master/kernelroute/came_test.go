package kernelroute

import (
	"slices"
	"testing"

	"github.com/handfast/handfast/master/reexec"
)

// TestCame: handshakes are counted over all addresses, also such as are no more, and after the end; if one address is not counted, nobody
// knows.
func TestCame(t *testing.T) {
	inWorld(t, taking, 2, func(w *world) {
		a, b := w.all[0], w.group("B", "10.0.0.99:81", 2)
		w.addGroup(b)
		expect := func(step string, all uint64, want ...uint64) {
			t.Helper()
			if got, sum := w.Came(); !slices.Equal(got, want) || sum != all {
				t.Errorf("%s: %v, %d in all, want %v, %d", step, got, sum, want, all)
			}
		}
		expect("nobody counts", 0)
		a.came = []uint64{1, 2, 4} // also of a slot that is no more
		expect("not at all addresses", 0)
		if w.SaveCounts(reexec.NewBundle("1")) != nil {
			t.Error("counts are saved, of which there are none")
		}
		b.came = []uint64{10, 20, 40}
		expect("two addresses", 77, 11, 22)
		if !w.removeGroup(b) {
			t.Fatal("not removed")
		}
		a.came[0]++
		expect("one of which is no more", 78, 12, 22)
		saved := w.SaveCounts(reexec.NewBundle("1"))
		w.came = nil
		if err := w.Restore(w.Save(reexec.NewBundle("1")), saved); err != nil {
			t.Fatal(err)
		}
		expect("another program", 78, 12, 22)
		w.Close(t.Context())
		a.came = nil
		expect("at the end", 78, 12, 22)
	})
}
