package kernelroute

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/supervisor"
)

// saved returns what the next program reads.
func (w *world) saved() *Saved {
	w.Helper()
	text, err := json.Marshal(w.Save(nil))
	if err != nil {
		w.Fatal(err)
	}
	state := new(Saved)
	if err := json.Unmarshal(text, state); err != nil {
		w.Fatal(err)
	}
	return state
}

// next makes the next program's Route, with the same listeners.
func (w *world) next(kind Config, state *Saved) error {
	w.acceptors.stopAll()
	w.acceptors.running.Wait()
	w.makeRoute(kind, w.groups)
	return w.Restore(state, nil)
}

// TestSaveRestore: the next program knows which worker has which berth, where slots' clients come to, whose berth is
// spoiled or cools down, and that workers have served. Then their links are made and fill the slots.
func TestSaveRestore(t *testing.T) {
	inWorld(t, foreign, 2, func(w *world) {
		for i, name := range []string{"a", "b", "c", "d"} {
			w.start(name, i%2, true)
			w.fill(name)
		}
		w.start("e", 0, true) // not ready yet
		w.exits("b")
		w.all[0].found.Locked = []int{1}
		w.repair()
		before := w.look()
		state := w.saved()
		old, time0 := w.Route, time.Now()
		if err := w.next(foreign, state); err != nil {
			t.Fatal(err)
		}
		if again := w.saved(); !reflect.DeepEqual(again, state) {
			t.Errorf("saves\n%+v, and was given\n%+v", again, state)
		}
		w.Resize(2)
		for _, name := range []string{"a", "c", "d", "e"} {
			was := w.workers[name]
			link, err := w.RestoreLink(was.pid, func(l *Lease) (Link, error) {
				if l.slot != was.slot || l.berth.number != was.berth.number {
					t.Errorf("%s has berth %d of slot %d, had %d of %d", name, l.berth.number, l.slot, was.berth.number, was.slot)
				}
				w.workers[name] = l
				return &fakeLink{name: name, accepts: true}, nil
			})
			if err != nil || link != w.workers[name].link {
				t.Fatal(link, err)
			}
		}
		w.fill("c")
		w.fill("d")
		w.expect("as before", before)
		for i, b := range w.berths {
			if o := old.berths[i]; b.used != o.used || b.spoiled != o.spoiled || !b.left.Equal(o.left) || b.slot != o.slot {
				t.Errorf("berth %d is %+v, was %+v", i, b, o)
			}
		}
		if !w.served || w.berths[0].left.Before(time0.Add(-time.Minute)) {
			t.Errorf("served %v, left %v", w.served, w.berths[0].left)
		}
		w.start("f", 1, true)
		if n := w.workers["f"].berth.number; n == 1 {
			t.Error("a spoiled berth is given to a worker")
		}
	})
}

// TestRestoreLink: a worker is known by its process. One that has none is no worker of ours, and an error of its link
// leaves its berth as it was.
func TestRestoreLink(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		pid := w.start("a", 0, true).pid
		if err := w.next(foreign, w.saved()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.RestoreLink(4711, func(*Lease) (Link, error) { t.Error("restored"); return nil, nil }); err == nil {
			t.Error("a worker that nobody knows: no error")
		}
		broken := errors.New("no descriptor")
		if _, err := w.RestoreLink(pid, func(*Lease) (Link, error) { return nil, broken }); !errors.Is(err, broken) {
			t.Error(err)
		}
		w.HandleEvent(supervisor.Event{Kind: supervisor.WorkerExited, PID: pid})
		if l := w.berths[0].leases; len(l) != 0 {
			t.Errorf("it has ended, and has %d leases", len(l))
		}
	})
}

// TestRestoreEnded: a worker that was not ready, and that the program before has told to end, is not the one that clients of its slot wait for. One that
// was ready is, of a slot that is not in use yet.
func TestRestoreEnded(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		a := w.start("a", 0, true)
		w.fill("a")
		w.start("b", 0, true)
		w.happens(supervisor.WorkerTerminated, "b")
		d := w.start("d", 1, true)
		if err := w.next(foreign, w.saved()); err != nil {
			t.Fatal(err)
		}
		w.Resize(1)
		for name, pid := range map[string]int{"a": a.pid, "d": d.pid} {
			if _, err := w.RestoreLink(pid, func(l *Lease) (Link, error) {
				w.workers[name] = l
				return &fakeLink{name: name, accepts: true}, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		w.fill("a")
		w.start("c", 0, true)
		w.expect("c starts while b ends", "0 a: serves; -: none; - d: none; - c: none")
		w.exits("a")
		w.Empty(0)
		w.expect("a ends", "-: now!; -: none; - d: none; 0 c: wait!")
		w.Resize(2)
		w.expect("slot 1 is in use", "-: now!; -: none; 1 d: wait!; 0 c: wait!")
	})
}

// TestRestoreFamilies: a group for both families that was about to go away does so in the next program.
func TestRestoreFamilies(t *testing.T) {
	both(t, func(w *world, four *fakeGroup) {
		a := w.start("a", 0, false)
		if _, err := a.OnlyIPv4(a.Files()[0]); err != nil {
			t.Fatal(err)
		}
		state := w.saved()
		old := w.Route
		if err := w.next(foreign, state); err != nil {
			t.Fatal(err)
		}
		old.mu.Lock()
		old.closed = true // execve ends it, and its timers
		old.mu.Unlock()
		b := w.berths[0].leases[0]
		if ln, err := b.OnlyIPv4(w.all[0].members[0]); err != nil || ln != four.members[0] {
			t.Errorf("%v, %v", ln, err)
		}
		time.Sleep(balancer.LastGrace)
		w.notes("it goes away", "0.1 A closes")
	})
}

// TestRestoreNonsense: what cannot be is refused, and says what it is.
func TestRestoreNonsense(t *testing.T) {
	for name, spoil := range map[string]func(*Saved){
		"no groups":               func(s *Saved) { s.Groups = nil },
		"no berths":               func(s *Saved) { s.Berths = nil },
		"no slots":                func(s *Saved) { s.At = nil },
		"a slot nowhere":          func(s *Saved) { s.At[1] = 2 },
		"a slot before the first": func(s *Saved) { s.At[0] = -1 },
		"a group without a berth": func(s *Saved) { s.Groups[0].Members = s.Groups[0].Members[:1] },
		"a berth without a group": func(s *Saved) { s.Berths = append(s.Berths, savedBerth{}) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, foreign, 2, func(w *world) {
				state := w.saved()
				spoil(state)
				if err := w.next(foreign, state); err == nil {
					t.Error("no error")
				}
			})
		})
	}
}

// TestRestoreFollows: a Route that listens where workers do may have no group yet.
func TestRestoreFollows(t *testing.T) {
	following(t, func(w *world) {
		pid := w.start("a", 1, true).pid
		kind := foreign
		kind.Follows = true
		if err := w.next(kind, w.saved()); err != nil {
			t.Fatal(err)
		}
		l := w.leaseOf(nil, pid)
		if l == nil || l.slot != 1 || !l.Follows() {
			t.Errorf("lease %+v", l)
		}
	})
}
