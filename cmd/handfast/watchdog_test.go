package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
)

// TestWatchdog: a worker that is stopped is reported, once, and shown, and when it goes on that is
// said too. Nothing else happens to it, and nothing at all to the other one.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		b := start(t, 2, options{flags: []string{"--route", route, "--watchdog", "2s"}})
		stopped := b.worker(1)
		before := time.Now()
		freeze(t, stopped)
		l := b.await("worker does not answer the watchdog")
		if l.Level != "warn" || l.PID != stopped || l.Slot != 1 || l.Generation != 1 || !strings.Contains(l.text, `"since":"20`) || !strings.Contains(l.text, `"replaced":false`) {
			t.Error(l.text)
		}
		if took := time.Since(before); took < time.Second {
			t.Errorf("reported after %v", took)
		}
		s := b.awaitStatus("who hangs", func(s *master.Status) bool { return s.Slots[1].State == master.Hung })
		if w := s.Slots[1].Worker; w.State != master.Hung || !w.Since.Before(s.Now.Add(-time.Second)) || s.Slots[0].State != "serving" || !s.Ready {
			t.Errorf("%+v", s)
		}
		if text := b.tell("status"); !strings.Contains(text, "\n1     hung ") {
			t.Error(text)
		}
		text := b.metrics()
		for _, line := range []string{"handfast_watchdog_timeouts_total 1", `handfast_worker_state{slot="1",state="hung"} 1`, `handfast_worker_failures_total{reason="watchdog"} 0`} {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("no %q in\n%s", line, text)
			}
		}
		b.mustGet(sourceIn(0, 2, 0), "/")
		waiting := b.open(sourceIn(1, 2, 0), 5)
		unix.Kill(stopped, unix.SIGCONT)
		if l := b.await("worker answers the watchdog again"); l.PID != stopped {
			t.Error(l.text)
		}
		for _, conn := range waiting {
			if a, err := response(conn); err != nil || a.pid != stopped {
				t.Errorf("%+v, %v", a, err)
			}
		}
		b.awaitStatus("that it serves", func(s *master.Status) bool { return s.Slots[1].State == "serving" })
		for i, l := range b.log("worker does not answer the watchdog") {
			if i > 0 && l.Slot == 1 {
				t.Error("said again: ", l.text)
			}
		}
	})
}

// TestWatchdogReplaces: a worker that is stopped is replaced, and a client that waits for it is served by the
// successor. Clients of the other slot notice nothing.
func TestWatchdogReplaces(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		b := start(t, 2, options{flags: []string{"--route", route, "--watchdog", "2s", "--when-hung", "replace"}})
		ours, others := sourceIn(0, 2, 0), sourceIn(1, 2, 0)
		hung, other := b.worker(0), b.worker(1)
		holds := b.socketFor(others)
		freeze(t, hung)
		waiting := b.open(ours, 20)
		if l := b.await("worker does not answer the watchdog"); l.PID != hung || !strings.Contains(l.text, `"replaced":true`) {
			t.Error(l.text)
		}
		b.awaitCount("worker ready", 3)
		for i, conn := range waiting {
			if a, err := response(conn); err != nil || a.status != http.StatusOK || a.slot != 0 || a.pid == hung {
				t.Errorf("client %d: %+v, %v", i, a, err)
			}
		}
		if a := b.mustGet(others, "/"); a.pid != other {
			t.Errorf("the other slot was disturbed: %+v", a)
		}
		if err := exchange(t.Context(), holds, "still here"); err != nil {
			t.Error(err)
		}
		s := b.awaitStatus("the end", func(s *master.Status) bool { return s.Slots[0].LastEnd != nil })
		if sl := s.Slots[0]; sl.LastEnd.PID != hung || sl.LastEnd.Why != "did not answer for 2s (watchdog)" || sl.Restarts != 1 || s.Slots[1].Restarts != 0 {
			t.Errorf("%+v", s.Slots)
		}
		if !eventually(func() bool { return !alive(hung) }) {
			t.Error("it was not killed")
		}
		text := b.metrics()
		for _, line := range []string{`handfast_worker_failures_total{reason="watchdog"} 1`, `handfast_worker_failures_total{reason="exited"} 0`, "handfast_watchdog_timeouts_total 1"} {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("no %q in\n%s", line, text)
			}
		}
	})
}

// TestWatchdogDeaf: a process that runs, and does not accept what it is handed, is no better than
// one that does not run.
func TestWatchdogDeaf(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{worker: []string{"stubborn"}, flags: []string{"--watchdog", "200ms", "--when-hung", "replace", "--kill-timeout", "1s", "--stop-timeout", "1s"}})
	b.await("worker does not answer the watchdog")
	b.awaitCount("worker ready", 2)
}

// TestWatchdogOfStoppedMaster: a master that was stopped for longer than the watchdog waits, alone or with
// all its workers, takes nobody for hung when it goes on.
func TestWatchdogOfStoppedMaster(t *testing.T) {
	t.Parallel()
	const watchdog = 2 * time.Second
	b := start(t, 2, options{flags: []string{"--watchdog", watchdog.String(), "--when-hung", "replace"}})
	master, workers := b.cmd.Process.Pid, []int{b.worker(0), b.worker(1)}
	for _, all := range []bool{false, true} {
		stopped := []int{master}
		if all { // as when the machine sleeps; workers go on last
			stopped = append(stopped, workers...)
		}
		for _, pid := range stopped {
			freeze(t, pid)
		}
		time.Sleep(watchdog + watchdog/2)
		for _, pid := range stopped {
			unix.Kill(pid, unix.SIGCONT)
		}
		time.Sleep(watchdog / 2) // two beats
	}
	for slot, pid := range workers {
		if a := b.mustGet(sourceIn(slot, 2, 0), "/"); a.pid != pid {
			t.Errorf("slot %d: %+v, was %d", slot, a, pid)
		}
	}
	if log := b.log("worker does not answer the watchdog"); len(log) > 0 {
		t.Error(log[0].text)
	}
}
