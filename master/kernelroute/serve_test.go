package kernelroute

import (
	"context"
	"io/fs"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/balancer"
)

// serve runs Serve, and returns how to end accepting and to kill, and what it returned.
func (w *world) serve(patience time.Duration) (stop, kill context.CancelFunc, ended chan error) {
	accepting, stop := context.WithCancel(w.Context())
	killed, kill := context.WithCancel(w.Context())
	ended = make(chan error, 1)
	go func() {
		err := w.Serve(accepting, killed, patience)
		w.journal.note("serving ends")
		ended <- err
	}()
	synctest.Wait()
	return stop, kill, ended
}

// TestServeRepairs: a look at what workers have done to their listeners takes at most a thousandth of the time, and comes
// not more often than each repairMin, and not less often than each repairMax.
func TestServeRepairs(t *testing.T) {
	for took, pause := range map[time.Duration]time.Duration{
		0:                      repairMin,
		100 * time.Microsecond: 100 * time.Millisecond,
		500 * time.Microsecond: 500 * time.Millisecond,
		time.Millisecond:       time.Second,
		20 * time.Millisecond:  repairMax,
	} {
		inWorld(t, taking, 1, func(w *world) {
			w.all[0].repairTime = took
			stop, _, ended := w.serve(0)
			time.Sleep(repairMin - 1)
			if w.all[0].looks() != 0 {
				t.Errorf("%v: a look at once", took)
			}
			time.Sleep(1 + 10*(took+pause))
			synctest.Wait()
			if n := w.all[0].looks(); n < 10 || n > 11 {
				t.Errorf("a look takes %v: %d looks in 10 times %v", took, n, took+pause)
			}
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestServeEnds: at the end no handshake begins any more. Those that are under way have balancer.LastGrace, and
// connections are accepted within the patience.
func TestServeEnds(t *testing.T) {
	grace := balancer.LastGrace.Seconds()
	if grace != 0.1 {
		t.Fatal("the times below are others")
	}
	for name, tt := range map[string]struct {
		wait, kill time.Duration // somebody waits for so long; we are killed then, if it is not 0
		want       string
	}{
		"nobody waits":        {0, 0, "0.1 serving ends"},
		"somebody waits":      {time.Second + time.Millisecond, 0, "1.005 serving ends"},
		"longer than we have": {time.Hour, 0, "2.1 serving ends"},
		"and we are killed":   {time.Hour, time.Second + time.Millisecond, "1.005 serving ends"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, foreign, 1, func(w *world) {
				w.start("a", 0, true)
				w.fill("a")
				stop, kill, ended := w.serve(2 * time.Second)
				if w.logged("listening", "address=10.0.0.99:80", "route=kernel") != 1 {
					t.Errorf("not said: %s", w.log)
				}
				if tt.wait > 0 {
					w.all[0].waits(0, 1)
					time.AfterFunc(tt.wait, func() { w.all[0].waits(0, 0) })
				}
				if tt.kill > 0 {
					time.AfterFunc(tt.kill, kill)
				}
				stop()
				time.Sleep(time.Minute)
				<-ended
				w.notes("the end", "0 A stops handshakes", tt.want)
				if w.all[0].looks() > 0 {
					t.Error("repaired at the end")
				}
			})
		})
	}
}

// TestClose: connections that wait are refused, all accepting has ended when the listeners are closed, and no group goes away
// by itself later.
func TestClose(t *testing.T) {
	inWorld(t, taking, 2, func(w *world) {
		four := w.group("B", "0.0.0.0:80", 2)
		w.mu.Lock()
		w.ipv4[w.groups[0]] = four
		w.addGroup(four)
		w.retireSoon()
		w.mu.Unlock()
		w.start("a", 0, false)
		w.fill("a")
		synctest.Wait()
		slices.Sort(w.journal.lines) // they begin at the same time
		w.notes("serves", "0 accepts at A0", "0 accepts at B0")
		w.all[0].waits(1, 7)
		w.Close(t.Context())
		time.Sleep(time.Hour)
		synctest.Wait()
		for _, line := range []string{"0 leaves A0", "0 leaves B0", "0 refuser takes 7 at A1", "0 refuser shuts down", "0 A closes", "0 B closes"} {
			w.journal.has(t, line)
		}
		w.notes("in this order", "0 refuser shuts down", "0 A closes", "0 B closes")
	})
}

// has takes a line out of the journal, unless it is one of the last three, whose order matters.
func (j *journal) has(t *testing.T, line string) {
	t.Helper()
	for i, l := range j.lines {
		if l == line {
			if i < len(j.lines)-3 {
				j.lines = append(j.lines[:i:i], j.lines[i+1:]...)
			}
			return
		}
	}
	t.Errorf("%q has not happened: %q", line, j.lines)
}

// TestClosedListeners: a worker that knows nothing of us, and has had no listener open for some looks in a row while
// somebody waits, is finishing. That is said once.
func TestClosedListeners(t *testing.T) {
	looks := func(w *world, n int) {
		for range n {
			time.Sleep(closedInterval)
			synctest.Wait()
		}
	}
	filled := func(w *world) (stop context.CancelFunc) {
		w.start("a", 0, true)
		w.fill("a")
		end, _, ended := w.serve(0)
		return func() {
			w.all[0].waits(0, 0)
			end()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	t.Run("it holds none", func(t *testing.T) {
		inWorld(t, foreign, 1, func(w *world) {
			stop := filled(w)
			looks(w, 10)
			w.notes("nobody waits: nobody looks")
			w.all[0].waits(0, 1)
			looks(w, closedLooks-1)
			w.notes("not for long", "2.2 looks for who holds a listener", "2.4 looks for who holds a listener")
			looks(w, 1)
			w.notes("for long", "2.6 looks for who holds a listener", "2.6 a is finishing")
			looks(w, 10)
			w.journal.lines = nil // it goes on looking
			stop()
			w.notes("said once", "4.6 A stops handshakes", "4.7 serving ends")
		})
	})
	t.Run("it reads its configuration anew", func(t *testing.T) {
		inWorld(t, foreign, 1, func(w *world) {
			stop := filled(w)
			w.all[0].waits(0, 1)
			looks(w, closedLooks-1)
			w.machineMu.Lock()
			w.holder = new(fakeHolder)
			w.machineMu.Unlock()
			w.holder.holds.Store(true)
			looks(w, 3)
			w.notes("it is found, and not looked for again", "0.2 looks for who holds a listener", "0.4 looks for who holds a listener", "0.6 looks for who holds a listener")
			w.holder.holds.Store(false)
			looks(w, closedLooks-1)
			w.journal.lines = nil
			w.holder.holds.Store(true)
			looks(w, 10)
			w.notes("nothing is said")
			stop()
		})
	})
	t.Run("somebody accepts meanwhile", func(t *testing.T) {
		inWorld(t, foreign, 1, func(w *world) {
			stop := filled(w)
			for range 5 {
				w.all[0].waits(0, 1)
				looks(w, closedLooks-1)
				w.all[0].waits(0, 0)
				looks(w, 1)
			}
			for _, line := range w.journal.lines {
				if line[len(line)-9:] == "finishing" {
					t.Error(line)
				}
			}
			stop()
		})
	})
	t.Run("nobody may look", func(t *testing.T) {
		inWorld(t, foreign, 1, func(w *world) {
			stop := filled(w)
			w.machineMu.Lock()
			w.hidden = fs.ErrPermission
			w.machineMu.Unlock()
			w.all[0].waits(0, 1)
			looks(w, 10)
			w.notes("asked once", "0.2 looks for who holds a listener")
			stop()
		})
	})
	t.Run("nobody knows for a moment", func(t *testing.T) {
		inWorld(t, foreign, 1, func(w *world) {
			stop := filled(w)
			hide := func(err error) {
				w.machineMu.Lock()
				defer w.machineMu.Unlock()
				w.hidden = err
			}
			hide(unix.EMFILE)
			w.all[0].waits(0, 1)
			looks(w, 2*closedLooks)
			if w.journal.ended("finishing") {
				t.Error("the worker was told to finish")
			}
			hide(nil)
			looks(w, closedLooks)
			if !w.journal.ended("finishing") {
				t.Errorf("the worker was not told to finish: %q", w.journal.lines)
			}
			stop()
		})
	})
	t.Run("workers that say so themselves", func(t *testing.T) {
		inWorld(t, taking, 1, func(w *world) {
			stop := filled(w)
			w.all[0].waits(0, 1)
			looks(w, 10)
			w.notes("nobody looks")
			stop()
		})
	})
	t.Run("its slot is empty", func(t *testing.T) {
		inWorld(t, foreign, 1, func(w *world) {
			stop := filled(w)
			w.Empty(0)
			w.all[0].waits(0, 1)
			looks(w, 10)
			w.notes("nobody looks")
			stop()
		})
	})
}
