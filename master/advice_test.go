package master

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// What a worker is waited for is said of the first one of a generation, unless it is ready or has ended
// by then; and a failure is looked into at most every ten seconds.
// Rows C1 and D13.
func TestAdvice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		note := func(what string) func(supervisor.Event) {
			return func(e supervisor.Event) { said = append(said, fmt.Sprint(what, e.PID)) }
		}
		a := newAdvice(note("slow"), note("failed"))
		hear := func(kind supervisor.EventKind, generation, pid int, was supervisor.State) {
			a.hear(supervisor.Event{Kind: kind, Seat: supervisor.Seat{Generation: generation}, PID: pid, Was: was, Exit: supervisor.Exit{Code: 1}})
			synctest.Wait()
		}
		hear(supervisor.WorkerStarted, 1, 10, 0)
		hear(supervisor.WorkerStarted, 1, 11, 0)
		time.Sleep(adviceAfter + 1)
		synctest.Wait()
		hear(supervisor.WorkerStarted, 2, 20, 0)
		hear(supervisor.WorkerReady, 2, 20, 0)
		hear(supervisor.WorkerStarted, 3, 30, 0)
		hear(supervisor.WorkerExited, 3, 30, supervisor.Starting)
		hear(supervisor.WorkerExited, 3, 31, supervisor.Starting)
		hear(supervisor.WorkerExited, 3, 32, supervisor.Draining)
		time.Sleep(adviceInterval)
		hear(supervisor.WorkerExited, 3, 33, supervisor.Stopping)
		hear(supervisor.WorkerExited, 3, 34, supervisor.Serving)
		if got := fmt.Sprint(said); got != "[slow10 failed30 failed34]" {
			t.Error(got)
		}
		hear(supervisor.WorkerStarted, 4, 40, 0)
		a.close() // does not wait for it
	})
}
