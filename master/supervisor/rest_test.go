package supervisor

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec"
)

// Row A2: what a worker that died leaves of its process group has its listeners and its mailbox. It is
// told to finish when the successor starts, and killed after KillTimeout.
func TestRestOfADeadWorker(t *testing.T) {
	play(t, func(w *world) {
		var log strings.Builder
		w.cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Warn})
		w.serve(1)
		w.exitsAlone("0a", Exit{Code: -1, Signal: "killed"}, 101, 102)
		w.expect("empty 0", "0a drains", "0b starts")
		w.ready("0b")
		w.expect("fill 0b")
		if d := w.snapshot().Draining; len(d) != 1 || d[0].State != Stopping || d[0].Deadline.IsZero() {
			t.Errorf("%+v, want the one that stops", d)
		}
		w.after(w.cfg.KillTimeout, "0a KILL")
		w.pass(maxRestPoll)
		w.saw("exited 0a signal killed rest [101 102]", "ready 0b", "killed 0a", "gone 0a")
		if d := w.snapshot().Draining; len(d) != 0 {
			t.Errorf("%+v, want none", d)
		}
		if got := log.String(); strings.Count(got, "left processes behind") != 1 || !strings.Contains(got, "[101, 102]") {
			t.Errorf("log\n%s", got)
		}
	})
}

// Most end together with the first one, or soon after.
func TestRestThatEnds(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		w.worker("0a").leave([]int{101})
		w.worker("0a").end(Exit{Code: 1})
		w.pass(restDelay / 2)
		w.worker("0a").leave(nil)
		w.pass(restDelay)
		w.expect("empty 0", "0b starts")
		w.exitsAlone("1a", Exit{Code: 1}, 102)
		w.expect("empty 1", "1a drains", "1b starts")
		w.restEnds("1a")
		w.after(w.cfg.ReadyTimeout - time.Second)
		w.saw("exited 0a status 1", "exited 1a status 1 rest [102]", "gone 1a")
	})
}

// One that was told to finish has children that do: they have as long as it had.
func TestRestOfAWorkerThatDrains(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.KillTimeout = 10 * time.Second
		w.serve(2)
		r := w.reload()
		w.ready("0b")
		w.ready("1b")
		r.succeeds()
		w.expect("0b starts", "fill 0b", "0a drains", "1b starts", "fill 1b", "1a drains")
		w.exitsAlone("0a", Exit{}, 101)
		w.exitsAlone("1a", Exit{}, 102)
		w.after(w.cfg.DrainTimeout/2 - restDelay*2)
		w.restEnds("1a")
		w.after(w.cfg.DrainTimeout/2-maxRestPoll, "0a TERM")
		w.after(w.cfg.KillTimeout, "0a KILL")
		w.pass(maxRestPoll)
		w.saw("exited 0a status 0 rest [101]", "exited 1a status 0 rest [102]", "gone 1a", "terminated 0a", "killed 0a", "gone 0a")
	})
}

// Links that do not signal the group have told the first process alone: the others hear of it now.
func TestRestOfAWorkerThatDrainsAlone(t *testing.T) {
	play(t, func(w *world) {
		w.drainsFirst = true
		w.serve(1)
		r := w.reload()
		w.ready("0b")
		r.succeeds()
		w.expect("0b starts", "fill 0b", "0a drains")
		w.exitsAlone("0a", Exit{}, 101)
		w.expect("0a TERM")
		w.after(w.cfg.KillTimeout, "0a KILL")
	})
}

func TestRestOfAWorkerThatWasNotReady(t *testing.T) {
	play(t, func(w *world) {
		w.run()
		w.exitsAlone("0a", Exit{Code: 1}, 101)
		w.expect("resize 1", "0a starts", "0a drains", "0a TERM", "0b starts")
		w.after(w.cfg.KillTimeout, "0a KILL")
	})
}

// Run does not return while somebody is left, and its end kills them.
func TestStopWaitsForTheRest(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.s.Stop()
		w.expect("empty 0", "0a drains")
		w.exitsAlone("0a", Exit{}, 101)
		w.runs()
		w.after(w.cfg.StopTimeout-restDelay, "0a TERM")
		w.after(w.cfg.KillTimeout, "0a KILL")
		w.pass(maxRestPoll)
		if err := w.ends(); err != nil {
			t.Error(err)
		}
	})
	play(t, func(w *world) {
		w.serve(1)
		w.exitsAlone("0a", Exit{Code: 1}, 101)
		w.expect("empty 0", "0a drains", "0b starts")
		w.kill()
		w.pass(maxRestPoll)
		w.expectAnyOrder("0a KILL", "0b drains", "0b TERM", "0b KILL")
		w.ends()
	})
}

// It counts as a process that runs.
func TestRestIsBounded(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MaxProcesses = 2
		w.serve(1)
		w.exitsAlone("0a", Exit{Code: 1}, 101)
		w.ready("0b")
		if err := w.reload().fails(); !strings.Contains(err.Error(), "2 worker processes run") {
			t.Error(err)
		}
	})
}

// Rows A2, A9: the next program goes on waiting for those that a worker of the one before has left
// behind, and does not take its end for a new one.
func TestRestAcrossAnUpgrade(t *testing.T) {
	pipe := newPipe(t)
	p := start(t, Spec{Command: []string{"sh", "-c", "sleep 1000 >&3 & exit 3"}, Files: []*os.File{pipe.w}})
	pipe.w.Close()
	p.Await()
	if rest := p.Rest(); len(rest) != 1 {
		t.Fatalf("%v are left, want one", rest)
	}
	b := reexec.NewBundle("")
	since := time.Now()
	state := saved{Generation: 1, Published: 1, Wanted: 1, Slots: []savedSlot{{Generation: 1, RespawnAt: since.Add(time.Hour)}}, Workers: []savedWorker{{
		Seat: Seat{0, 1, 1}, PID: p.PID(), State: Stopping, Ended: true, Since: since, Started: since, Deadline: since.Add(time.Second), Link: json.RawMessage("null"),
	}}}
	if err := b.Put(part, state); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Command, cfg.Workers, cfg.Resume = []string{"true"}, 1, b
	cfg.NewLink = func(Seat) (Link, error) { return nil, syscall.EMFILE }
	cfg.Slots = nobody{}
	gone := make(chan struct{})
	cfg.OnEvent = func(e Event) {
		switch e.Kind {
		case WorkerExited:
			t.Error("its end is told again")
		case WorkerGone:
			close(gone)
		}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error)
	go func() { ran <- s.Run(t.Context()) }()
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("it is not gone")
	}
	pipe.rest() // nobody has it
	s.Stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

type nobody struct{}

func (nobody) Resize(int)     {}
func (nobody) Fill(int, Link) {}
func (nobody) Empty(int)      {}

// A process is its group: a member that is left is found, and reached, until Wait.
func TestRestIsSignalled(t *testing.T) {
	fdtest.NoLeaks(t)
	pipe := newPipe(t)
	p := start(t, Spec{Command: []string{"sh", "-c", "sleep 1000 >&3 & exit 3"}, Files: []*os.File{pipe.w}})
	pipe.w.Close()
	if exit := p.Await(); exit != (Exit{Code: 3}) {
		t.Errorf("exit %v, want status 3", exit)
	}
	if rest := p.Rest(); len(rest) != 1 {
		t.Fatalf("%v are left, want one", rest)
	}
	p.Signal(syscall.SIGTERM)
	pipe.rest()
	for len(p.Rest()) > 0 { // closing its files comes before the end
		time.Sleep(time.Millisecond)
	}
	if exit := p.Wait(); exit != (Exit{Code: 3}) {
		t.Errorf("exit %v, want status 3", exit)
	}
}

// Row A13: a worker that was ready and ends with status 0 had enough, as servers that serve so many
// requests: no failure, and the next one starts at once, though no more than one in BackoffMin.
func TestWorkerThatHadEnough(t *testing.T) {
	play(t, func(w *world) {
		var log strings.Builder
		w.cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Warn})
		w.serve(1)
		w.pass(time.Second)
		for letter := 'a'; letter < 'k'; letter++ {
			w.exits("0"+string(letter), 0)
			w.expect("empty 0", "0"+string(letter+1)+" starts")
			w.pass(time.Second)
			w.ready("0" + string(letter+1))
			w.expect("fill 0" + string(letter+1))
		}
		w.exits("0k", 0) // at once
		w.expect("empty 0", "0l starts")
		w.ready("0l")
		w.exits("0l", 0)
		w.expect("fill 0l", "empty 0")
		w.after(w.cfg.BackoffMin, "0m starts")
		if text := log.String(); text != "" {
			t.Errorf("log\n%s", text)
		}
		w.exits("0m", 0) // it was not ready: a failure like any other
		w.expect("0n starts")
		w.exits("0n", 0)
		w.after(w.cfg.BackoffMin, "0o starts")
	})
}

// The same for one that leaves first, and ends when it has finished; one that leaves and does not end
// fails, or many of them could be finishing at a time.
func TestWorkerThatLeavesAndFinishes(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		for letter := 'a'; letter < 'k'; letter++ {
			w.leaves("0" + string(letter))
			w.expect("empty 0", "0"+string(letter)+" drains", "0"+string(letter+1)+" starts")
			w.ready("0" + string(letter+1))
			w.expect("fill 0" + string(letter+1))
			w.exits("0"+string(letter), 0)
		}
		w.leaves("0k")
		w.ready("0l")
		w.leaves("0l")
		w.expect("empty 0", "0k drains", "0l starts", "fill 0l", "empty 0", "0l drains")
		w.after(w.cfg.BackoffMin, "0m starts")
	})
}

// One that is seen to have closed its listeners is not told to finish, as that would be the second time.
func TestFinishing(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		w.s.Finishing(w.worker("0a"))
		w.expect("empty 0", "0b starts")
		w.s.Finishing(w.worker("0a")) // again
		w.ready("0b")
		w.expect("fill 0b")
		w.shows("0b serving, 1a serving; 0a draining")
		w.after(w.cfg.DrainTimeout, "0a drains", "0a TERM")
		w.exits("0a", 0)
		w.s.Finishing(w.worker("1a"))
		w.expect("empty 1", "1b starts")
		w.exits("1a", 0)
		w.saw("left 0a: it has closed its listeners, and finishes", "left 1a: it has closed its listeners, and finishes", "exited 1a status 0")
	})
}

// Row C12: a process that ends closes its link first; its exit is the reason.
func TestExitIsTheReason(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		r := w.reload()
		close(w.worker("0b").leftc)
		w.pass(lastMoment / 2)
		w.exits("0b", 7)
		if err := r.fails(); !strings.Contains(err.Error(), "slot 0: worker exited with status 7 before it was ready (had enough); ") {
			t.Error(err)
		}
		close(w.worker("0a").leftc)
		w.pass(lastMoment / 2)
		w.exits("0a", 8)
		w.expect("0b starts", "empty 0", "0c starts")
		if why := w.snapshot().Slots[0].LastEnd.Why; why != "exited with status 8 (had enough)" {
			t.Errorf("last end %q", why)
		}
	})
}
