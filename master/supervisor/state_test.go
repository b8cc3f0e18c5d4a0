package supervisor

import (
	"slices"
	"testing"
	"time"
)

func TestStateTable(t *testing.T) {
	all := []State{Starting, Serving, Draining, Stopping, Killed, Exited, Standby, Lingering}
	allowed := []string{
		"starting → serving", "starting → draining", "starting → stopping", "starting → exited",
		"serving → standby", "serving → lingering", "serving → draining", "serving → stopping", "serving → killed", "serving → exited",
		"standby → serving", "standby → lingering", "standby → draining", "standby → stopping", "standby → killed", "standby → exited",
		"lingering → draining", "lingering → stopping", "lingering → killed", "lingering → exited",
		"draining → stopping", "draining → killed", "draining → exited",
		"stopping → killed", "stopping → exited",
		"killed → exited",
	}
	for _, from := range all {
		for _, to := range all {
			move := from.String() + " → " + to.String()
			want := slices.Contains(allowed, move)
			if got := from.may(to); got != want {
				t.Errorf("may %s: %v, want %v", move, got, want)
			}
			w := &worker{state: from}
			if entered := !panics(func() { w.enter(to, time.Second) }); entered != want {
				t.Errorf("enter %s: %v, want %v", move, entered, want)
			}
			if want != (w.state == to && !w.deadline.IsZero()) && from != to {
				t.Errorf("after %s: state %v, deadline %v", move, w.state, w.deadline)
			}
		}
	}
}

func TestEnterWithoutTimeout(t *testing.T) {
	w := &worker{deadline: time.Now()}
	if w.enter(Serving, 0); !w.deadline.IsZero() {
		t.Errorf("deadline %v, want none", w.deadline)
	}
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return false
}
