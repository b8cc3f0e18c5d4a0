package supervisor

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec"
)

const probation = 2 * time.Second

// playProbation is play with n workers that serve, and a probation.
func playProbation(t *testing.T, n int, script func(w *world)) {
	t.Helper()
	play(t, func(w *world) {
		w.cfg.Probation = probation
		w.serve(n)
		script(w)
	})
}

// Row A14: the old worker stays as it is until the new one has lasted; slots do not wait for each
// other, and the reload ends with the last probation.
func TestProbation(t *testing.T) {
	playProbation(t, 2, func(w *world) {
		r := w.reload()
		w.ready("0b")
		w.expect("0b starts", "fill 0b", "1b starts")
		w.pass(time.Second)
		w.ready("1b")
		w.expect("fill 1b")
		w.shows("0b serving (0a standby), 1b serving (1a standby)")
		if r := w.snapshot().Reload; r.Done != 2 || time.Until(r.Probation) != probation {
			t.Errorf("%+v", r)
		}
		w.after(time.Second, "0a drains")
		r.waits()
		w.after(time.Second, "1a drains")
		r.succeeds()
		w.holds("0b 1b")
		w.shows("0b serving, 1b serving; 0a draining; 1a draining")
		w.saw("ready 0b", "standby 0a", "ready 1b", "standby 1a", "draining 0a", "draining 1a", "reloaded 2")
	})
}

// Row A14: a version that does not last never replaces the old one, anywhere.
func TestProbationFails(t *testing.T) {
	for name, tt := range map[string]struct {
		fails func(w *world)
		did   []string
		why   string
	}{
		"exits": {
			func(w *world) { w.exits("0b", 1) },
			[]string{"fill 0a", "fill 1a", "1b drains", "2b drains", "2b TERM"}, "worker exited with status 1"},
		"ends well": {
			func(w *world) { w.exits("0b", 0) },
			[]string{"fill 0a", "fill 1a", "1b drains", "2b drains", "2b TERM"}, "worker exited with status 0"},
		"leaves": {
			func(w *world) { w.leaves("0b") },
			[]string{"fill 0a", "fill 1a", "1b drains", "2b drains", "2b TERM", "0b drains"}, "worker left: had enough"},
		"leaves others behind": {
			func(w *world) { w.exitsAlone("0b", Exit{Code: 1}, 101) },
			[]string{"fill 0a", "fill 1a", "1b drains", "2b drains", "2b TERM", "0b drains"}, "worker exited with status 1"},
		"another one is not ready": {
			func(w *world) { w.exits("2b", 1) },
			[]string{"fill 0a", "0b drains", "fill 1a", "1b drains"}, "worker exited with status 1 before it was ready"},
	} {
		t.Run(name, func(t *testing.T) {
			playProbation(t, 3, func(w *world) {
				r := w.reload()
				w.ready("0b")
				w.pass(time.Second)
				w.ready("1b")
				w.expect("0b starts", "fill 0b", "1b starts", "fill 1b", "2b starts")
				tt.fails(w)
				err := r.fails()
				if want := tt.why + "; slots 0 to 2 keep what they had"; !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %s", err, want)
				}
				w.expect(tt.did...)
				w.holds("0a 1a 2a")
				w.saw("restored 0a", "restored 1a")
				if s := w.snapshot(); s.Generation != 1 || s.Slots[0].LastEnd == nil && name != "another one is not ready" {
					t.Errorf("generation %d, last end %v", s.Generation, s.Slots[0].LastEnd)
				}
				w.pass(w.cfg.KillTimeout) // 2b was not ready, and ends
				w.lines = nil
				w.after(w.cfg.DrainTimeout/2 - w.cfg.KillTimeout) // and nothing else happens
				w.exits("0a", 1)                                  // the old one is watched as ever
				w.expect("empty 0", "0c starts")
				if g := w.worker("0c").seat.Generation; g != 1 {
					t.Errorf("generation %d", g)
				}
			})
		})
	}
}

// Those that have lasted stay, as before.
func TestProbationFailsLate(t *testing.T) {
	playProbation(t, 3, func(w *world) {
		r := w.reload()
		w.ready("0b")
		w.pass(probation)
		w.ready("1b")
		w.expect("0b starts", "fill 0b", "1b starts", "0a drains", "fill 1b", "2b starts")
		w.exits("1b", 1)
		if err := r.fails(); !strings.Contains(err.Error(), "slot 1: worker exited with status 1; slots 1 to 2 keep what they had") {
			t.Error(err)
		}
		w.expect("fill 1a", "2b drains", "2b TERM")
		w.holds("0b 1a 2a")

		r = w.reload()
		w.ready("0c")
		w.ready("1c")
		w.ready("2c")
		w.exits("2c", 1) // ready in all slots, and the last fails
		r.fails()
		w.holds("0b 1a 2a")
	})
}

// Hangs: on probation it fails, whatever is to be done with others that hang.
func TestProbationOfOneThatHangs(t *testing.T) {
	for _, replace := range []bool{false, true} {
		play(t, func(w *world) {
			w.cfg.Probation = time.Minute
			w.cfg.Watchdog, w.cfg.ReplaceHung = 2*time.Second, replace
			w.serve(1)
			r := w.reload()
			w.ready("0b")
			w.expect("0b starts", "fill 0b")
			asked := w.worker("0a").pings
			w.pass(time.Second)
			if w.worker("0a").pings != asked {
				t.Error("one that stands by is asked")
			}
			w.mute("0b", true)
			w.pass(w.cfg.Watchdog)
			if err := r.fails(); !strings.Contains(err.Error(), "worker did not answer for 2s (watchdog); slot 0 keeps what it had") {
				t.Error(err)
			}
			want := []string{"fill 0a", "0b drains"}
			if replace {
				want = []string{"0b KILL", "fill 0a"}
			}
			w.expect(want...)
			w.pass(time.Second)
			if w.worker("0a").pings == asked {
				t.Error("it is not watched any more")
			}
		})
	}
}

// One that stands by may end, or leave: then nobody can be put back, and that is all.
func TestStandbyEnds(t *testing.T) {
	for name, ends := range map[string]func(w *world) (did []string){
		"exits":  func(w *world) []string { w.exits("0a", 1); return nil },
		"leaves": func(w *world) []string { w.leaves("0a"); return []string{"0a drains"} },
		"others": func(w *world) []string {
			w.exitsAlone("0a", Exit{Code: 1}, 101)
			return []string{"0a drains"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			playProbation(t, 1, func(w *world) {
				r := w.reload()
				w.ready("0b")
				w.expect("0b starts", "fill 0b")
				did := ends(w)
				r.succeeds()
				w.expect(did...)
				w.exits("0b", 1)
				w.expect("empty 0", "0c starts")
				if sl := w.snapshot().Slots[0]; sl.Standby != nil || sl.LastEnd.PID != 2 {
					t.Errorf("%+v", sl)
				}
			})
		})
	}
}

// A slot whose worker had died has nobody to put back, others have.
func TestProbationWithoutAnOldWorker(t *testing.T) {
	playProbation(t, 2, func(w *world) {
		w.exits("0a", 1)
		w.expect("empty 0", "0b starts")
		r := w.reload()
		w.expect("0b drains", "0b TERM", "0c starts")
		w.ready("0c")
		w.ready("1b")
		w.expect("fill 0c", "1b starts", "fill 1b")
		w.exits("0c", 1)
		if err := r.fails(); !strings.Contains(err.Error(), "slot 0: worker exited with status 1; slot 1 keeps what it had") {
			t.Error(err)
		}
		w.expect("empty 0", "fill 1a", "1b drains")
		w.after(w.cfg.BackoffMin, "0d starts")
	})
}

func TestStopDuringProbation(t *testing.T) {
	playProbation(t, 2, func(w *world) {
		r := w.reload()
		w.ready("0b")
		w.ready("1b")
		w.expect("0b starts", "fill 0b", "1b starts", "fill 1b")
		w.s.Stop()
		if err := r.fails(); err != ErrStopped {
			t.Error(err)
		}
		w.expect("empty 0", "0b drains", "0a drains", "empty 1", "1b drains", "1a drains")
		for _, name := range []string{"0a", "0b", "1a", "1b"} {
			w.exits(name, 0)
		}
		w.ends()
	})
	playProbation(t, 1, func(w *world) {
		w.reload()
		w.ready("0b")
		w.lines = nil
		w.kill()
		w.expectAnyOrder("empty 0", "0b drains", "0a drains", "0a KILL", "0b KILL")
		w.ends()
	})
}

func TestScaleDuringProbation(t *testing.T) {
	playProbation(t, 2, func(w *world) {
		r := w.reload()
		w.ready("0b")
		w.ready("1b")
		w.expect("0b starts", "fill 0b", "1b starts", "fill 1b")
		w.pass(time.Second)
		w.scale(1)
		w.expect("resize 1", "1b drains", "1a drains")
		w.scale(2)
		w.expect("1c starts")
		w.ready("1c")
		w.expect("resize 2", "fill 1c")
		r.waits()
		w.after(time.Second, "0a drains")
		r.succeeds()
		if g := w.worker("1c").seat.Generation; g != 2 {
			t.Errorf("a slot that came during a reload has generation %d", g)
		}
	})
	playProbation(t, 2, func(w *world) { // the last that the reload waits for is removed
		r := w.reload()
		w.ready("0b")
		w.pass(probation)
		w.ready("1b")
		r.waits()
		w.scale(1)
		r.succeeds()
	})
}

// The second one begins when the first has ended, with its probation.
func TestReloadDuringProbation(t *testing.T) {
	playProbation(t, 1, func(w *world) {
		first := w.reload()
		w.ready("0b")
		second := w.reload()
		w.expect("0b starts", "fill 0b")
		if err := w.s.Quiesce(true, func() error { return nil }); err != ErrUpgradeReload {
			t.Errorf("an upgrade: %v, want %v", err, ErrUpgradeReload)
		}
		w.after(probation, "0a drains", "0c starts")
		first.succeeds()
		w.ready("0c")
		w.expect("fill 0c")
		w.exits("0c", 1)
		second.fails()
		w.expect("fill 0b")
		w.holds("0b")
	})
}

func TestReplaceIsOnProbation(t *testing.T) {
	playProbation(t, 2, func(w *world) {
		c := w.replace(1)
		w.ready("1b")
		w.expect("1b starts", "fill 1b")
		w.pass(time.Second)
		again := w.replace(1) // which has begun
		c.waits()
		w.after(time.Second, "1a drains")
		c.succeeds()
		again.succeeds()

		c = w.replace(0)
		w.ready("0b")
		w.expect("0b starts", "fill 0b")
		w.exits("0b", 1)
		if err := c.fails(); !strings.Contains(err.Error(), "slot 0 keeps what it had: worker exited with status 1") {
			t.Error(err)
		}
		w.expect("fill 0a")
		w.after(time.Minute)

		c = w.replace(0)
		w.ready("0c")
		w.scale(3)
		w.s.Stop()
		if err := c.fails(); !errors.Is(err, ErrStopped) {
			t.Error(err)
		}
	})
}

// A reload that comes in between replaces the one on probation, which may be put back, too.
func TestReloadOvertakesAReplace(t *testing.T) {
	for _, lasts := range []bool{true, false} {
		playProbation(t, 1, func(w *world) {
			c := w.replace(0)
			w.ready("0b")
			r := w.reload()
			w.expect("0b starts", "fill 0b", "0c starts")
			c.waits()
			w.ready("0c")
			c.succeeds()
			w.expect("0a drains", "fill 0c")
			if lasts {
				w.after(probation, "0b drains")
				r.succeeds()
				return
			}
			w.exits("0c", 1)
			r.fails()
			w.expect("fill 0b")
			w.holds("0b")
		})
	}
}

// One on probation dies while the next one starts: the old one serves until that is ready.
func TestProbationFailsDuringAReload(t *testing.T) {
	playProbation(t, 1, func(w *world) {
		c := w.replace(0)
		w.ready("0b")
		r := w.reload()
		w.exits("0b", 1)
		c.fails()
		w.expect("0b starts", "fill 0b", "0c starts", "fill 0a")
		w.ready("0c")
		w.expect("fill 0c")
		w.after(probation, "0a drains")
		r.succeeds()
	})
}

// Where there is no room for so many processes the reload waits for those that stand by.
func TestProbationWithoutRoom(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.Probation, w.cfg.MaxProcesses = probation, 4
		w.serve(3)
		r := w.reload()
		w.ready("0b")
		w.expect("0b starts", "fill 0b")
		r.waits()
		w.pass(time.Second)
		w.exits("0a", 0) // it did not want to wait
		w.expect("1b starts")
		w.ready("1b")
		w.expect("fill 1b")
		w.after(probation, "1a drains") // and goes on
		if err := r.fails(); !strings.Contains(err.Error(), "slot 2: 4 worker processes run") || !strings.Contains(err.Error(), "slot 2 keeps what it had") {
			t.Error(err)
		}
	})
}

// kept is a link that another program goes on with.
type kept struct {
	noLink
	name    string
	drained chan struct{}
	once    *sync.Once
}

func (k kept) Save(*reexec.Bundle) (any, error) { return k.name, nil }
func (k kept) Resume()                          {}
func (k kept) Drain()                           { k.once.Do(func() { close(k.drained) }) }

// filled tells of what is put into a slot.
type filled struct {
	nobody
	links chan Link
}

func (f filled) Fill(_ int, link Link) { f.links <- link }

// resumed is a supervisor that goes on with what another program has saved.
type resumed struct {
	*testing.T
	s     *Supervisor
	links map[string]kept
	slots filled
	ran   chan error
}

// resume runs one until ends. change says what else it is to do.
func resume(t *testing.T, state saved, change func(*Config)) *resumed {
	t.Helper()
	b := reexec.NewBundle("")
	if err := b.Put(part, state); err != nil {
		t.Fatal(err)
	}
	r := &resumed{T: t, links: map[string]kept{}, slots: filled{links: make(chan Link, 10)}, ran: make(chan error)}
	cfg := DefaultConfig()
	cfg.Command, cfg.Workers, cfg.Resume, cfg.Slots, cfg.StopTimeout = []string{"true"}, 1, b, r.slots, 0
	cfg.NewLink = func(Seat) (Link, error) { return nil, syscall.EMFILE }
	cfg.RestoreLink = func(_ Seat, _ int, text json.RawMessage) (Link, error) {
		k := kept{drained: make(chan struct{}), once: new(sync.Once)}
		err := json.Unmarshal(text, &k.name)
		r.links[k.name] = k
		return k, err
	}
	change(&cfg)
	var err error
	if r.s, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	go func() { r.ran <- r.s.Run(t.Context()) }()
	return r
}

// fills wants the slot to get the worker of a link.
func (r *resumed) fills(want string) {
	r.Helper()
	if got := (<-r.slots.links).(kept).name; got != want {
		r.Errorf("%s is in the slot", got)
	}
}

// saves returns what it saves for the next program.
func (r *resumed) saves() (again saved) {
	r.Helper()
	next := reexec.NewBundle("")
	if err := r.s.Quiesce(true, func() error { return r.s.Save(next) }); err != nil {
		r.Error(err)
	}
	if err := next.Get(part, &again); err != nil {
		r.Error(err)
	}
	return again
}

func (r *resumed) ends() {
	r.Helper()
	r.s.Stop()
	if err := <-r.ran; err != nil {
		r.Error(err)
	}
}

// An upgrade while a slot's worker is on probation: the next program knows, and saves it, too.
func TestProbationAcrossAnUpgrade(t *testing.T) {
	for name, lasts := range map[string]bool{"lasts": true, "fails": false} {
		t.Run(name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			var workers []savedWorker
			for i, state := range []State{Standby, Serving} {
				p := start(t, Spec{Command: []string{"sleep", "1000"}})
				link, _ := json.Marshal([]string{"old", "new"}[i])
				w := savedWorker{Seat: Seat{0, 1, 1}, PID: p.PID(), State: state, Current: i == 1, Standby: i == 0, Link: link, ReadyAt: time.Now()}
				if state == Standby {
					w.Deadline = time.Now().Add(time.Second)
				}
				workers = append(workers, w)
			}
			r := resume(t, saved{Generation: 1, Published: 1, Wanted: 1, Slots: []savedSlot{{Generation: 1}}, Workers: workers}, func(*Config) {})
			r.fills("new")
			for _, w := range r.saves().Workers {
				if standsBy := w.PID == workers[0].PID; w.Standby != standsBy || w.Current == standsBy || (w.State == Standby) != standsBy {
					t.Errorf("saved again: %+v", w)
				}
			}
			if lasts {
				<-r.links["old"].drained
			} else {
				syscall.Kill(workers[1].PID, syscall.SIGKILL)
				r.fills("old")
			}
			r.ends()
		})
	}
}
