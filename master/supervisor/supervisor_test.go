package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestWorkerFillsItsSlotWhenReady(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.Workers = 2
		w.run()
		w.expect("resize 2", "0a starts", "1a starts")
		w.holds("- -")
		w.ready("1a")
		w.expect("fill 1a")
		w.holds("- 1a")
		w.ready("0a")
		w.expect("fill 0a")
		w.after(time.Hour)
	})
}

func TestWorkerIsToldWhoItIs(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.Env = []string{"WORKER_ID=mine"}
		w.serve(2)
		w.reload()
		w.ready("0b")
		spec := w.worker("1b").spec
		want := []string{"HANDFAST_SLOT=1", "HANDFAST_SLOTS=2", "HANDFAST_GENERATION=2", "WORKER_ID=1", "LINK=1b", "WORKER_ID=mine"}
		if !slices.Equal(spec.Env, want) {
			t.Errorf("environment %q, want %q", spec.Env, want)
		}
		if !slices.Equal(spec.Command, []string{"launch", "server"}) || !slices.Equal(spec.Files, []*os.File{os.Stdin}) {
			t.Errorf("command %q, files %v", spec.Command, spec.Files)
		}
	})
}

// The first replacement comes at once, the next ones later and later while workers
// die young.
func TestRespawn(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.exits("0a", 1)
		w.expect("empty 0", "0b starts")
		w.exits("0b", 1)
		w.after(100*time.Millisecond, "0c starts")
		w.ready("0c") // ready, but dead soon
		w.expect("fill 0c")
		w.pass(w.cfg.MinUptime - 1)
		w.exits("0c", 1)
		w.expect("empty 0")
		w.after(200*time.Millisecond, "0d starts")
		delay := 400 * time.Millisecond
		for letter := 'd'; letter < 'm'; letter++ {
			w.exits(fmt.Sprintf("0%c", letter), 0)
			w.after(delay, fmt.Sprintf("0%c starts", letter+1))
			delay = min(2*delay, 10*time.Second)
		}
		w.ready("0m")
		w.expect("fill 0m")
		w.pass(w.cfg.MinUptime)
		w.exits("0m", 1) // old enough: all is forgiven
		w.expect("empty 0", "0n starts")
		w.exits("0n", 1)
		w.after(100*time.Millisecond, "0o starts")
	})
}

func TestSlotsBackOffEachForItself(t *testing.T) {
	play(t, func(w *world) {
		w.serve(2)
		w.exits("0a", 1)
		w.exits("0b", 1)
		w.expect("empty 0", "0b starts")
		w.exits("1a", 1)
		w.expect("empty 1", "1b starts")
		w.ready("1b")
		w.expect("fill 1b")
		w.after(100*time.Millisecond, "0c starts")
		w.holds("- 1b")
	})
}

func TestWorkerThatIsNotReadyInTimeIsReplaced(t *testing.T) {
	play(t, func(w *world) {
		w.run()
		w.expect("resize 1", "0a starts")
		w.after(w.cfg.ReadyTimeout, "0a drains", "0a TERM", "0b starts")
		w.ready("0a") // too late
		w.after(w.cfg.KillTimeout, "0a KILL")
		w.after(w.cfg.ReadyTimeout-w.cfg.KillTimeout, "0b drains", "0b TERM")
		w.after(100*time.Millisecond, "0c starts")
		w.ready("0c")
		w.expect("fill 0c")
		w.saw("not ready 0a", "terminated 0a", "started 0b", "killed 0a", "exited 0a signal killed", "ready 0c")
	})
}

// A worker that its link believes is asked, and takes the slot over when it has answered.
func TestProbe(t *testing.T) {
	play(t, func(w *world) {
		answers := make(chan error)
		w.cfg.Probe = func(ctx context.Context, seat Seat) error {
			select {
			case err := <-answers:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		w.run()
		w.ready("0a")
		w.expect("resize 1", "0a starts")
		answers <- nil
		w.expect("fill 0a")

		// One that ends meanwhile is not asked any more: nobody reads from answers.
		reload := w.reload()
		w.ready("0b")
		w.exits("0b", 1)
		reload.fails()
		w.expect("0b starts")
		select {
		case answers <- nil:
			t.Error("a worker that has ended is asked")
		default:
		}

		// One that does not answer is not ready in time.
		reload = w.reload()
		w.expect("0c starts")
		w.ready("0c")
		w.after(w.cfg.ReadyTimeout, "0c drains", "0c TERM")
		reload.fails()
		w.holds("0a")
	})
}

func TestStartFailureBacksOff(t *testing.T) {
	play(t, func(w *world) {
		w.startErr = errors.New("no such file")
		w.run()
		w.expect("resize 1", "0a cannot start", "0b cannot start")
		w.after(100*time.Millisecond, "0c cannot start")
		w.startErr, w.linkErr = nil, errors.New("too many open files")
		w.after(200*time.Millisecond, "no link for 0")
		w.linkErr = nil
		w.after(400*time.Millisecond, "0d starts")
		w.ready("0d")
		w.expect("fill 0d")
		w.saw("start failed: no such file", "start failed: no such file", "start failed: no such file",
			"start failed: too many open files", "started 0d", "ready 0d")
	})
}

func TestWorkerThatLeavesIsReplacedAndDrains(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.leaves("0a")
		w.expect("empty 0", "0a drains", "0b starts")
		w.ready("0b")
		w.expect("fill 0b")
		w.after(w.cfg.DrainTimeout, "0a TERM")
		w.exits("0a", 0)
		w.after(time.Hour)
		w.saw("left 0a: had enough", "draining 0a", "ready 0b", "terminated 0a", "exited 0a status 0")
	})
}

// It has no clients, so there is nothing to wait for; and if it were given the time
// to drain, a slot that backs off could collect hundreds of such processes.
func TestWorkerThatLeavesBeforeItIsReadyIsEnded(t *testing.T) {
	play(t, func(w *world) {
		w.run()
		w.expect("resize 1", "0a starts")
		w.leaves("0a")
		w.expect("0a drains", "0a TERM", "0b starts")
		w.ready("0a")
		w.leaves("0b")
		w.expect("0b drains", "0b TERM")
		w.after(100*time.Millisecond, "0c starts")
	})
}

// Ready, left and exit come from different goroutines, so in any order.
func TestWorkerThatIsReadyLeavesAndExitsAtOnce(t *testing.T) {
	play(t, func(w *world) {
		w.run()
		a := w.worker("0a")
		close(a.readyc)
		close(a.leftc)
		a.end(Exit{Code: 3})
		w.holds("-")
		w.ready("0b")
		w.holds("0b")
		w.saw("exited 0a status 3")
	})
}

// Not even SIGKILL ends a process that hangs in the kernel.
func TestProcessThatCannotBeKilledIsGivenUp(t *testing.T) {
	play(t, func(w *world) {
		w.serve(1)
		w.worker("0a").unkillable = true
		w.leaves("0a")
		w.ready("0b")
		w.expect("empty 0", "0a drains", "0b starts", "fill 0b")
		w.after(w.cfg.DrainTimeout, "0a TERM")
		w.after(w.cfg.KillTimeout, "0a KILL")
		w.pass(reapTimeout)
		if w.worker("0a").closed != 1 {
			t.Error("its link is still open: what waits in its mailbox is lost")
		}
		w.exits("0a", 0) // after all
		w.after(time.Hour)
		w.holds("0b")
		w.saw("killed 0a", "exited 0a status 0")
	})
}

func TestReadyAndExitAreLoggedOnce(t *testing.T) {
	play(t, func(w *world) {
		var log bytes.Buffer
		w.cfg.Logger = hclog.New(&hclog.LoggerOptions{JSONFormat: true, Output: &log})
		w.serve(1)
		w.exits("0a", 3) // pid 1
		w.ready("0b")
		w.reload()
		w.ready("0c")
		w.exits("0b", 0)
		w.exits("0c", 1)
		w.pass(time.Second)
		w.exits("0d", 1) // was not ready
		w.kill()
		w.ends()

		var got []string
		for line := range strings.Lines(log.String()) {
			var l map[string]any
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			if l["@message"] == "worker ready" || l["@message"] == "worker exited" {
				got = append(got, fmt.Sprint(l["@message"], " ", l["slot"], l["pid"], l["generation"], " ", l["exit"]))
			}
		}
		want := []string{
			"worker ready 0 1 1 <nil>", "worker exited 0 1 1 status 3", "worker ready 0 2 1 <nil>",
			"worker ready 0 3 2 <nil>", "worker exited 0 2 1 status 0", "worker exited 0 3 2 status 1",
			"worker exited 0 4 2 status 1",
		}
		if !slices.Equal(got, want) {
			t.Errorf("log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestNoneDiesYoung: with a MinUptime of 0 workers that die as soon as they are ready are no failures, so that the delay does
// not grow; but no more than one is started in BackoffMin.
func TestNoneDiesYoung(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.MinUptime = 0
		w.serve(1)
		for _, names := range [][2]string{{"0a", "0b"}, {"0b", "0c"}, {"0c", "0d"}} {
			w.exits(names[0], 1)
			w.expect("empty 0")
			w.after(w.cfg.BackoffMin, names[1]+" starts")
			w.ready(names[1])
			w.expect("fill " + names[1])
		}
		w.pass(w.cfg.BackoffMin)
		w.exits("0d", 1)
		w.expect("empty 0", "0e starts")
	})
}

// TestStartWithoutDescriptors: that there are none is no worker's fault. The next start is tried after BackoffMin, however often
// that was so, and neither counts as a restart.
func TestStartWithoutDescriptors(t *testing.T) {
	play(t, func(w *world) {
		w.linkErr = fmt.Errorf("mailbox: %w", syscall.EMFILE)
		w.run()
		w.expect("resize 1", "no link for 0")
		for range 5 {
			w.after(w.cfg.BackoffMin, "no link for 0")
		}
		w.linkErr = nil
		w.after(w.cfg.BackoffMin, "0a starts")
		w.ready("0a")
		w.expect("fill 0a")
		if slot := w.snapshot().Slots[0]; slot.Restarts != 0 || slot.LastEnd == nil || !strings.Contains(slot.LastEnd.Why, "could not be started: mailbox: too many open files") {
			t.Errorf("%d restarts, last end %+v", slot.Restarts, slot.LastEnd)
		}
	})
}
