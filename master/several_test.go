package master

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// Row C2: several processes of one slot are said once in a run, of what several looks have seen and
// what is there still; one worker of each generation is looked at until then.
func TestSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		self, parent, gone := os.Getpid(), os.Getppid(), 1<<30
		sees := [][]int{{gone, self}, {gone, self}, {gone, self}} // generation 1: one, and one that has ended
		var looks, found []string
		s := newSeveral(func(pid int) []int {
			looks = append(looks, fmt.Sprint(pid))
			pids := sees[0]
			sees = sees[1:]
			return pids
		}, func(e supervisor.Event, pids []int) {
			found = append(found, fmt.Sprint(e.Slot, e.Generation, len(pids)))
		})
		ready := func(slot, generation int) {
			s.hear(supervisor.Event{Kind: supervisor.WorkerReady, Seat: supervisor.Seat{Slot: slot, Generation: generation}, PID: generation*10 + slot})
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		ready(1, 1)
		ready(0, 1) // no more looks
		sees = [][]int{nil, {self}, {parent}}
		ready(2, 2) // each was busy when the other was seen
		ready(0, 3)
		if fmt.Sprint(looks) != "[11 11 11 22 22 22]" || fmt.Sprint(found) != "[2 2 2]" {
			t.Errorf("looks %v, found %v", looks, found)
		}
		s = newSeveral(nil, nil)
		s.hear(supervisor.Event{Kind: supervisor.WorkerReady, Seat: supervisor.Seat{Generation: 1}})
		s.close() // does not wait for a look
	})
}
