package master

import (
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/supervisor"
)

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
	if s := workerStatus(&supervisor.WorkerStatus{Link: &workerLink{reports: reports{}}}); s.Open != nil || s.Accepted != nil {
		t.Errorf("%+v", s)
	}
	s := workerStatus(&supervisor.WorkerStatus{Link: &workerLink{reports: reports{said: true, last: fdpass.Report{Accepted: 7}}}})
	if s.Open == nil || *s.Open != 0 || *s.Accepted != 7 {
		t.Errorf("%+v", s)
	}
}

type reports struct {
	last    fdpass.Report
	said    bool
	most    int
	answers bool
}

func (r reports) Report() (fdpass.Report, bool) { return r.last, r.said }
func (r reports) MaxConnections() int           { return r.most }
func (r reports) Answers() bool                 { return r.answers }
