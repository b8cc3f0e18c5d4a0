// Package simulation runs the supervisor, the balancer and the kernel's route for many seeds, each of which makes a schedule of what may happen to
// them: clients that come, workers that come up or do not, that hang, leave and die, reloads, scaling and upgrades. Most seeds have the master
// route, to workers with mailboxes; a third has the kernel route (kernel_test.go), to workers that accept or are handed connections, or to such as get
// listeners and nothing else. Time, processes, mailboxes, listeners and their queues are not real; the supervisor, the table, the balancer's waiting,
// package kernelroute with its rule, leases, clocks and looks, and how a signal makes a worker finish (launch.Drainer) are. After each event all is
// looked at that must be so at any time (check_test.go).
package simulation

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

var firstSeed = flag.Uint64("seed", 0, "the one seed that TestSimulation runs, and tells; with HANDFAST_TEST_SEEDS the first of so many; 0: those from 1 on")

// event is one line of a schedule. What it is about is chosen by n among what there is then, so that
// events can be left out.
type event struct {
	after time.Duration // of the event before
	kind  kind
	n     int
}

// kind is what happens.
type kind struct {
	name  string
	often int // compared with others
	do    func(w *world, n int)
}

var kinds = []kind{
	{"clients come", 30, func(w *world, n int) { w.arrive(n%16, 1+n%5) }},
	{"a worker dies", 12, func(w *world, n int) { w.pick(n, func(k *worker) { k.die(n % 2) }) }},
	{"a worker hangs", 6, func(w *world, n int) { w.pick(n, func(k *worker) { k.hangs, k.hung = true, true }) }},
	{"workers do not hang any more", 4, func(w *world, n int) { w.wake() }},
	{"a worker leaves", 3, func(w *world, n int) { w.pick(n, (*worker).leave) }},
	{"a worker falls ill", 3, func(w *world, n int) { w.pick(n, func(k *worker) { k.isIll = true }) }},
	{"a worker grows", 3, func(w *world, n int) { w.pick(n, func(k *worker) { k.memory = 2 }) }},
	{"reload", 10, func(w *world, n int) {
		w.call("reload", func(s *supervisor.Supervisor) error { return s.Reload(context.Background()) })
	}},
	{"replace", 4, func(w *world, n int) {
		w.call("replace", func(s *supervisor.Supervisor) error { return s.Replace(context.Background(), n%4) })
	}},
	{"scale", 5, func(w *world, n int) {
		w.call("scale", func(s *supervisor.Supervisor) error { return s.Scale(1 + n%4) })
	}},
	{"drain those that linger", 2, func(w *world, n int) {
		w.call("drain", func(s *supervisor.Supervisor) error {
			_, err := s.DrainLingering(func(supervisor.Seat) bool { return true })
			return err
		})
	}},
	{"no more listeners, or some", 1, func(w *world, n int) {
		w.locked(func() { w.kernel.noFiles = w.seed%8 == 0 && !w.kernel.noFiles })
	}},
	{"upgrade", 6, func(w *world, n int) { w.upgrade() }},
	{"time passes", 6, func(w *world, n int) { w.step(time.Duration(n%15) * time.Second) }},
}

// pick does something to one of the workers that live.
func (w *world) pick(n int, f func(*worker)) {
	w.locked(func() {
		var alive []*worker
		for _, k := range w.workers {
			if k.started && !k.isDead {
				alive = append(alive, k)
			}
		}
		if len(alive) > 0 {
			f(alive[n%len(alive)])
		}
	})
}

// wake ends that workers hang.
func (w *world) wake() {
	w.locked(func() {
		for _, k := range w.workers {
			if k.hangs {
				k.hangs = false
				if k.listener != nil {
					k.listener.blocked = time.Now()
				}
				k.take()
				k.accept()
			}
		}
	})
}

// schedule is what happens for a seed.
func schedule(seed uint64) (all []event) {
	r := rand.New(rand.NewPCG(seed, 2))
	sum := 0
	for _, k := range kinds {
		sum += k.often
	}
	for range 10 + r.IntN(25) {
		at := r.IntN(sum)
		i := 0
		for ; at >= kinds[i].often; i++ {
			at -= kinds[i].often
		}
		pause := time.Duration(r.IntN(100)) * time.Millisecond
		if r.IntN(3) == 0 {
			pause = time.Duration(r.IntN(4000)) * time.Millisecond
		}
		all = append(all, event{pause, kinds[i], r.IntN(1 << 16)})
	}
	return all
}

// quiet is for how long nothing goes wrong at the end of a schedule: longer than a reload of all slots, and one that waits for it, take, with all
// that drains then.
const quiet = 2 * time.Minute

// play runs a schedule, and returns what was wrong; empty: nothing. tell gets a line for each event.
func play(t *testing.T, seed uint64, all []event, tell func(string)) (failure string) {
	defer func() {
		if why := recover(); why != nil { // of package synctest: goroutines are left
			failure = fmt.Sprint(failure, "; ", why)
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(seed)
		line := func(what string) {
			w.check()
			if tell != nil {
				tell(fmt.Sprintf("%9.3fs %-22s %v", time.Since(w.began).Seconds(), what, w.m))
			}
		}
		w.startMaster(nil, w.cfg.Workers, nil, nil)
		w.step(0)
		line("start, " + w.link.String())
		for _, e := range all {
			w.step(e.after)
			w.check()
			e.kind.do(w, e.n)
			w.step(0)
			if line(e.kind.name); w.failure != "" {
				break
			}
		}
		if w.failure == "" && seed%3 > 0 { // others are stopped in the middle of it all
			w.locked(func() { w.calm, w.kernel.noFiles = true, false })
			w.wake()
			for range 2 {
				w.step(quiet / 2)
				line("nothing goes wrong")
			}
			w.checkQuiet()
			line("rest")
		}
		w.locked(func() { w.stopping = true })
		w.arrive(1, 3)
		switch seed % 4 {
		case 0:
			w.m.kill()
		case 1:
			go w.m.stop()
			w.step(5 * time.Second)
			w.m.kill()
		default:
			go w.m.stop()
		}
		select {
		case <-w.m.ended:
		case <-time.After(2 * time.Minute):
			w.locked(func() { w.fail("Run does not end") })
		}
		w.locked(func() { // what cannot be killed
			for _, k := range w.workers {
				if k.started && !k.isDead {
					if k.like.killable {
						w.fail("%s outlives the master", k.name)
					}
					k.die(-1)
				}
			}
		})
		w.m.end()
		w.step(time.Minute)
		w.locked(w.checkNoneOpen)
		w.locked(w.checkCalls)
		if tell != nil {
			tell(fmt.Sprintf("%9.3fs stopped", time.Since(w.began).Seconds()))
		}
		failure = w.failure
	})
	return failure
}

// shrink leaves out events for as long as something is wrong. Not all that happens at the same time has an order, so that each
// try is made several times.
func shrink(t *testing.T, seed uint64, all []event) []event {
	fails := func(fewer []event) bool {
		for range 3 {
			if play(t, seed, fewer, nil) != "" {
				return true
			}
		}
		return false
	}
	for size := len(all); size > 0; size /= 2 {
		for i := 0; i+size <= len(all); {
			if fewer := slices.Delete(slices.Clone(all), i, i+size); fails(fewer) {
				all = fewer
			} else {
				i++
			}
		}
	}
	return all
}

// TestSimulation: whatever happens, all promises hold.
func TestSimulation(t *testing.T) {
	n, text, first := 300, os.Getenv("HANDFAST_TEST_SEEDS"), max(*firstSeed, 1)
	switch {
	case text == "" && *firstSeed != 0:
		explain(t, first, schedule(first))
		return
	case text != "":
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatalf("HANDFAST_TEST_SEEDS: %v", err)
		}
	}
	for seed := first; seed < first+uint64(n); seed++ {
		hangs := time.AfterFunc(time.Minute, func() { panic(fmt.Sprintf("seed %d hangs", seed)) })
		if failure := play(t, seed, schedule(seed), nil); failure != "" {
			hangs.Stop()
			t.Errorf("seed %d: %s", seed, failure)
			explain(t, seed, shrink(t, seed, schedule(seed)))
			return
		}
		hangs.Stop()
	}
}

// explain runs a schedule and tells what happens.
func explain(t *testing.T, seed uint64, all []event) {
	var lines []string
	failure := ""
	for range 10 {
		lines = nil
		if failure = play(t, seed, all, func(line string) { lines = append(lines, line) }); failure != "" {
			break
		}
	}
	t.Logf("seed %d\n%s", seed, strings.Join(lines, "\n"))
	if failure != "" {
		t.Errorf("seed %d: %s", seed, failure)
	}
}
