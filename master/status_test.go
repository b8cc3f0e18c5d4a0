package master

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/balancer"
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
	if s := new(Master).workerStatus(&supervisor.WorkerStatus{Link: &workerLink{reports: reports{}}}); s.Open != nil || s.Accepted != nil {
		t.Errorf("%+v", s)
	}
	s := new(Master).workerStatus(&supervisor.WorkerStatus{Link: &workerLink{reports: reports{said: true, last: fdpass.Report{Accepted: 7}}}})
	if s.Open == nil || *s.Open != 0 || *s.Accepted != 7 {
		t.Errorf("%+v", s)
	}
}

type reports struct {
	last    fdpass.Report
	said    bool
	most    int
	answers bool
	named   time.Time
}

func (r reports) Report() (fdpass.Report, bool) { return r.last, r.said }
func (r reports) MaxConnections() int           { return r.most }
func (r reports) Answers() bool                 { return r.answers }
func (r reports) LastNamed() time.Time          { return r.named }

// Status of a master that serves: what it is, its slots, and what was counted.
func TestStatus(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, _ := newConfig(t)
	workers.report = &fdpass.Report{Open: 1, Accepted: 5}
	cfg.Supervisor.Workers, cfg.MaxConnections = 2, 9
	p := run(t, cfg)
	p.isReady()
	c := p.dial()
	p.answer(c)
	fdtest.Eventually(t, "it is counted", func() bool { return p.Stats().HandedOff == 1 })
	s := p.Status()
	if s.Name != "test" || s.Version != "1" || s.Route != "master" || s.Link != "native" || s.Key != "address" || s.Stopping ||
		strings.Join(s.Addresses, " ") != p.at || s.Generation != 1 || s.Reload != nil || s.Upgrade.At != nil || s.Now.Before(s.Started) {
		t.Errorf("%+v", s)
	}
	var handedOff uint64
	for i, sl := range s.Slots {
		w := sl.Worker
		if sl.Slot != i || sl.State != "serving" || !sl.InUse || sl.Next != nil || sl.Queue != nil || sl.LastEnd != nil || sl.HandedOff == nil || sl.MailboxFull == nil || *sl.MailboxFull != 0 {
			t.Errorf("%+v", sl)
		}
		if w == nil || w.Slot != i || w.PID < firstPID || *w.Open != 1 || *w.Accepted != 5 || *w.MaxOpen != 9 || w.Deadline != nil {
			t.Errorf("%+v", w)
		}
		handedOff += *sl.HandedOff
	}
	if handedOff != 1 || *s.Totals.Accepted != 1 || *s.Totals.HandedOff != 1 || *s.Totals.TakenBack != 0 || *s.Totals.Gone != 0 || s.Totals.Parked != 0 {
		t.Errorf("%d handed off, %+v", handedOff, s.Totals)
	}
	place, err := p.Place("127.0.0.1")
	if err != nil || place.Slots != 2 || place.Worker == nil || place.Worker.Slot != place.Slot || place.Key != "address" {
		t.Errorf("%+v, %v", place, err)
	}
	if _, err := p.Place("nobody"); err == nil || !strings.HasPrefix(err.Error(), "master: ") {
		t.Error(err)
	}
	snapshot, _ := p.Snapshot()
	if len(snapshot.Slots) != 2 {
		t.Errorf("%+v", snapshot)
	}
}

// A reload, a worker that drains, and one that died, with its last words.
func TestStatusOfChanges(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, _ := newConfig(t)
	cfg.Supervisor.BackoffMin, cfg.Supervisor.BackoffMax = time.Hour, time.Hour
	p := run(t, cfg)
	p.isReady()
	workers.deaf.Store(true)
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	var s Status
	fdtest.Eventually(t, "the first worker drains", func() bool { s = p.Status(); return len(s.Draining) == 1 })
	if w := s.Draining[0]; w.State != "draining" || w.Generation != 1 || w.Deadline == nil {
		t.Errorf("%+v", w)
	}
	if r := s.Reload; r == nil || r.Generation != 2 || r.Done != 1 || r.Slots != 1 || r.Queued || r.Ended == nil || r.Error != "" || r.Began.After(*r.Ended) {
		t.Errorf("%+v", r)
	}
	workers.deaf.Store(false)
	workers.lazy.Store(true)
	workers.worker(0).end(supervisor.Exit{})
	workers.worker(1).end(supervisor.Exit{Code: 3})
	fdtest.Eventually(t, "the slot starts anew", func() bool { s = p.Status(); return s.Slots[0].State == "starting" && s.Slots[0].Next != nil })
	sl := s.Slots[0]
	if end := sl.LastEnd; end == nil || end.PID != firstPID+1 || end.Generation != 2 || !strings.Contains(end.Why, "status 3") || sl.Worker != nil || sl.Restarts != 1 {
		t.Errorf("%+v, %+v", sl, end)
	}
	if why := s.NotReady(); s.Ready || why != "slot 0 is starting" {
		t.Errorf("ready: %v, %q", s.Ready, why)
	}
	workers.worker(2).end(supervisor.Exit{Code: 4})
	fdtest.Eventually(t, "the next start is delayed", func() bool { s = p.Status(); return s.Slots[0].NextStart != nil })
	if sl = s.Slots[0]; sl.State != "empty" {
		t.Errorf("%+v", sl)
	}
}

// TestStatusByRoute: a count that is not known is null: by the kernel's route the master counts what it accepts itself, and nothing before.
func TestStatusByRoute(t *testing.T) {
	b, err := balancer.New(balancer.DefaultConfig(), balancer.NewTable(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, kernel := range []bool{false, true} {
		m, _ := newFake(LinkNative)
		m.balancer = b
		m.route = &fakeRoute{kernel: kernel, of: []*balancer.Balancer{b, b}, queued: map[int]int{0: 3}}
		s := Status{Slots: make([]SlotStatus, 1)}
		m.count(&s)
		sl := s.Slots[0]
		if (sl.HandedOff == nil) != kernel || (sl.MailboxFull == nil) != kernel || (s.Totals.Accepted == nil) != kernel || (sl.Queue != nil) != kernel || kernel && *sl.Queue != 3 {
			t.Errorf("kernel's route: %v: %+v %+v", kernel, sl, s.Totals)
		}
	}
	b.RestoreStats(balancer.Stats{Accepted: 1, HandedOff: 2, TakenBack: 3, Refused: 4, Gone: 5})
	m, log := newFake(LinkNative)
	m.balancer = b
	m.route = &fakeRoute{kernel: true, of: []*balancer.Balancer{b, b}}
	if s := m.Stats(); s.Accepted != 2 || s.HandedOff != 4 || s.TakenBack != 6 || s.Refused != 8 || s.Gone != 10 {
		t.Errorf("%+v", s)
	}
	m.logSummary()
	log.expect(t, "stopped: accepted_by_master=2 handed_off=4 taken_back=6 refused=8 gone=10")
	b.RestoreStats(balancer.Stats{Refused: 4})
	m.logSummary()
	log.expect(t, "stopped: refused=8\n")
}

// TestWorkerHandsBack: whether it does matters only where requests decide, and once it can be known.
func TestWorkerHandsBack(t *testing.T) {
	does, doesNot := &workerLink{handsBack: func() bool { return true }}, new(workerLink)
	for _, c := range []struct {
		decide bool
		state  supervisor.State
		link   *workerLink
		want   string
	}{
		{false, supervisor.Serving, does, "null"},
		{true, supervisor.Starting, does, "null"},
		{true, supervisor.Serving, does, "true"},
		{true, supervisor.Lingering, does, "true"},
		{true, supervisor.Serving, doesNot, "false"},
	} {
		m := &Master{requestsDecide: c.decide}
		s := m.workerStatus(&supervisor.WorkerStatus{State: c.state, Link: c.link})
		if got, err := json.Marshal(s.HandsBack); string(got) != c.want || err != nil {
			t.Errorf("%+v: %s, %v", c, got, err)
		}
	}
	slot := func(handsBack *bool) SlotStatus { return SlotStatus{Worker: &WorkerStatus{HandsBack: handsBack}} }
	for want, slots := range map[string][]SlotStatus{
		"":      {{}, slot(nil)},
		"each":  {{}, slot(new(true)), slot(nil)},
		"first": {slot(new(true)), slot(new(false)), slot(new(true))},
	} {
		if got := (Status{Slots: slots}).Requests(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A worker that does not answer the watchdog is hung since it was heard last, whatever its state.
func TestStatusOfWorkers(t *testing.T) {
	now := time.Now()
	if new(Master).workerStatus(nil) != nil || reloadStatus(&supervisor.Snapshot{}) != nil || timeStatus(time.Time{}) != nil {
		t.Error("there is none")
	}
	s := new(Master).workerStatus(&supervisor.WorkerStatus{State: supervisor.Serving, Since: now, Silent: now.Add(time.Second), Deadline: now.Add(time.Minute), Link: &workerLink{reports: reports{most: 4}}})
	if s.State != Hung || !s.Since.Equal(now.Add(time.Second)) || !s.Deadline.Equal(now.Add(time.Minute)) || *s.MaxOpen != 4 || s.Open != nil {
		t.Errorf("%+v", s)
	}
	r := reloadStatus(&supervisor.Snapshot{Queued: true, Reload: &supervisor.ReloadStatus{Generation: 2, Done: 1, Slots: 3, Began: now, Err: errors.New("too slow")}})
	if r.Error != "too slow" || !r.Queued || r.Ended != nil || r.Probation != nil || r.Done != 1 || r.Slots != 3 {
		t.Errorf("%+v", r)
	}
	m, _ := newFake(LinkAny, "[::]:80")
	if !m.listensOn(netip.MustParseAddrPort("[::]:80")) {
		t.Error("it does not listen where it does")
	}
}
