package master

import (
	"io"
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/supervisor"
)

// TestCounts: what happens to connections is counted for their slot, whoever is in it.
func TestCounts(t *testing.T) {
	table := NewTable(2)
	table.Fill(0, &fakeWorker{name: "a", room: 2})
	b, dial, _ := serveTest(t, table, func(cfg *BalancerConfig) { cfg.MaxRetries = 0 })
	counted := func(slot int, handedOff, refused, full uint64) {
		t.Helper()
		c := table.counts(slot)
		if !soon(func() bool {
			return c.handedOff.Load() == handedOff && c.refused.Load() == refused && c.full.Load() == full
		}) {
			t.Errorf("slot %d: handed off %d, refused %d, full %d; want %d, %d, %d",
				slot, c.handedOff.Load(), c.refused.Load(), c.full.Load(), handedOff, refused, full)
		}
	}
	for range 3 {
		io.ReadAll(dial(2))
	}
	// The third is tried on the straight line, and once when it is parked.
	counted(0, 2, 1, 2)
	table.Fill(0, busyWorker("b"))
	io.ReadAll(dial(4))
	counted(0, 3, 1, 2)
	io.ReadAll(dial(1))
	counted(1, 0, 1, 0)
	table.Resize(1)
	table.Resize(2)
	counted(1, 0, 0, 0)
	counted(noSlot, 0, 0, 0)
	if s := b.Stats(); s.HandedOff != 3 || s.Refused != 2 {
		t.Errorf("%+v", s)
	}
}

// TestCountsBySession: a connection that goes to the worker that keeps its session counts
// for that one's slot.
func TestCountsBySession(t *testing.T) {
	table := NewTable(2)
	table.countsOf(placedWorker{slot: 1}).handedOff.Add(1)
	table.countsOf(placedWorker{slot: 2}).handedOff.Add(1) // was removed
	table.countsOf(busyWorker("")).handedOff.Add(1)        // cannot tell
	if n := table.counts(0).handedOff.Load() + 2*table.counts(1).handedOff.Load(); n != 2 {
		t.Error(n)
	}
}

type placedWorker struct {
	Worker
	slot int
}

func (w placedWorker) Slot() int { return w.slot }

// TestNotReady: during a reload and while a slot is added all goes on; without a worker it
// does not.
func TestNotReady(t *testing.T) {
	worker := &WorkerStatus{}
	serving := SlotStatus{State: "serving", InUse: true, Worker: worker}
	for _, c := range []struct {
		status Status
		want   string
	}{
		{Status{}, "starting"},
		{Status{Slots: []SlotStatus{serving}}, ""},
		{Status{Slots: []SlotStatus{serving}, Stopping: true}, "stopping"},
		{Status{Slots: []SlotStatus{{State: "serving", InUse: true, Worker: worker, Next: worker}, {State: "starting", Next: worker, Slot: 1}}}, ""},
		{Status{Slots: []SlotStatus{serving, {State: "starting", InUse: true, Slot: 1}, {State: "empty", InUse: true, Slot: 2}}}, "slot 1 is starting, slot 2 is empty"},
	} {
		if got := c.status.NotReady(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestWorkerReports: what a worker has open is null until it says so, and 0 when it does.
func TestWorkerReports(t *testing.T) {
	if s := workerStatus(&supervisor.WorkerStatus{Link: reports{}}); s.Open != nil || s.Accepted != nil {
		t.Errorf("%+v", s)
	}
	s := workerStatus(&supervisor.WorkerStatus{Link: reports{said: true, last: fdpass.Report{Accepted: 7}}})
	if s.Open == nil || *s.Open != 0 || *s.Accepted != 7 {
		t.Errorf("%+v", s)
	}
}

type reports struct {
	supervisor.Link
	last fdpass.Report
	said bool
}

func (r reports) Report() (fdpass.Report, bool) { return r.last, r.said }
