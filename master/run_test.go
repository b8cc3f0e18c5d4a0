package master

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/supervisor"
)

// A client comes to its slot's worker, and Stop has the workers finish.
func TestRun(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, log := newConfig(t)
	p := run(t, cfg)
	if got := p.asks(); got != "0#0" {
		t.Errorf("answered by %q", got)
	}
	if err := p.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if p.isStopping() {
		t.Error("it stops")
	}
	p.Stop()
	p.Stop() // has no effect
	<-p.Stopping()
	if err := p.ends(); err != nil {
		t.Error(err)
	}
	if n := len(workers.worker(0).signals); n != 0 {
		t.Errorf("the worker got %d signals", n)
	}
	log.expect(t, "listening: address="+p.at, "stopping", "stopped: accepted=1 handed_off=1 taken_back=0 refused=0 gone=0")
}

// Several listeners lead to the same slots.
func TestRunListeners(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, _, _ := newConfig(t)
	cfg.Listeners = []net.Listener{listen(t), listen(t)}
	p := run(t, cfg)
	for _, at := range p.route.addresses() {
		p.at = at.String()
		if got := p.asks(); got != "0#0" {
			t.Errorf("answered by %q", got)
		}
	}
	p.Stop()
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}

// TestRunServesParked: a connection that was accepted is served, also when Stop is called while its slot is empty.
func TestRunServesParked(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, log := newConfig(t)
	workers.lazy.Store(true)
	p := run(t, cfg)
	c := p.dial()
	fdtest.Eventually(t, "the connection is parked", func() bool { return p.Stats().Parked == 1 })
	p.Stop()
	fdtest.Eventually(t, "the master stops", p.isStopping)
	workers.worker(0).ready()
	if got := p.answer(c); got != "0#0" {
		t.Errorf("answered by %q", got)
	}
	if err := p.ends(); err != nil {
		t.Error(err)
	}
	log.expect(t, "stopping", "handed_off=1", "refused=0")
}

// Nobody waits for longer than their patience: they are refused with an answer, and the worker that was
// never ready is ended.
func TestRunRefusesParked(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, log := newConfig(t)
	cfg.Balancer.MaxRetries = 5
	workers.lazy.Store(true)
	p := run(t, cfg)
	c := p.dial()
	if got := p.answer(c); !strings.Contains(got, "502") {
		t.Errorf("answered with %q", got)
	}
	c.Close()
	p.Stop()
	if err := p.ends(); err != nil {
		t.Error(err)
	}
	if sig := <-workers.worker(0).signals; sig != syscall.SIGTERM {
		t.Errorf("signal %v", sig)
	}
	log.expect(t, "stopped: accepted=1 handed_off=0 taken_back=0 refused=1")
}

// When ctx ends nobody is waited for.
func TestRunKilled(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, _ := newConfig(t)
	cfg.Supervisor.StopTimeout = time.Hour
	workers.deaf.Store(true)
	p := run(t, cfg)
	p.isReady()
	p.Stop()
	fdtest.Eventually(t, "the workers are to finish", func() bool { return p.Status().Stopping })
	p.kill()
	if err := p.ends(); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if sig := fdtest.Receive(t, "a signal", workers.worker(0).signals); sig != syscall.SIGKILL {
		t.Errorf("signal %v", sig)
	}
}

// strange is a listener that nobody can accept from.
type strange struct{ net.Listener }

func (strange) Addr() net.Addr { return &net.UnixAddr{Name: "strange"} }

// A listener that fails ends all: those that can be accepted from would hide it.
func TestRunCannotAccept(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, log := newConfig(t)
	cfg.Listeners = []net.Listener{listen(t), strange{listen(t)}}
	p := run(t, cfg)
	err := p.ends()
	if err == nil || !strings.Contains(err.Error(), "strange") {
		t.Errorf("Run: %v", err)
	}
	log.expect(t, "cannot accept any more, stopping: err=", "stopped: accepted=0")
	if workers.count() > 1 {
		t.Errorf("%d workers were started", workers.count())
	}
}

// TestRunRetires: connections that wait at an address that is not wanted any more are served, and then nobody listens there.
func TestRunRetires(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, _, log := newConfig(t)
	old, broken := listen(t), strange{listen(t)}
	cfg.Listeners, cfg.retired = []net.Listener{listen(t)}, []net.Listener{old, broken}
	early, err := net.Dial("tcp", old.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	p := run(t, cfg)
	if got := p.answer(early); got != "0#0" {
		t.Errorf("answered by %q", got)
	}
	fdtest.Eventually(t, "nobody listens any more", func() bool {
		c, err := net.Dial("tcp", old.Addr().String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if got := p.asks(); got != "0#0" {
		t.Errorf("answered by %q", got)
	}
	p.Stop()
	if err := p.ends(); err != nil {
		t.Error(err)
	}
	log.expect(t, "what waited at an address that is no more was not accepted")
}

// Workers are replaced, added and removed while clients come.
func TestRunReload(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, _ := newConfig(t)
	var events []supervisor.EventKind
	heard := make(chan supervisor.EventKind, 1000)
	cfg.OnEvent = func(e supervisor.Event) { heard <- e.Kind }
	p := run(t, cfg)
	p.isReady()
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := p.asks(); got != "0#1" {
		t.Errorf("answered by %q", got)
	}
	generation, result, err := p.StartReload()
	if err != nil || generation != 3 {
		t.Errorf("generation %d, %v", generation, err)
	}
	if err := fdtest.Receive(t, "the reload", result); err != nil {
		t.Error(err)
	}
	result, err = p.StartReplace(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := fdtest.Receive(t, "the replacement", result); err != nil {
		t.Error(err)
	}
	if err := p.ScaleBy(1); err != nil {
		t.Error(err)
	}
	fdtest.Eventually(t, "there are two slots", func() bool { s := p.Status(); return s.Ready && len(s.Slots) == 2 })
	if err := p.Scale(1); err != nil {
		t.Error(err)
	}
	fdtest.Eventually(t, "there is one slot", func() bool { return len(p.Status().Slots) == 1 })
	p.Stop()
	if err := p.ends(); err != nil {
		t.Error(err)
	}
	if n := workers.count(); n != 5 {
		t.Errorf("%d workers were started", n)
	}
	close(heard)
	for kind := range heard {
		events = append(events, kind)
	}
	if len(events) < 10 || events[0] != supervisor.WorkerStarted {
		t.Errorf("events %v", events)
	}
}

// Where the kernel gives clients to slots, workers that do not accept are handed those that the master does.
func TestRunKernelRoute(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, _, log := newConfig(t)
	cfg.Groups = append(cfg.Groups, group(t))
	p := run(t, cfg)
	p.isReady()
	if got := p.asks(); got != "0#0" {
		t.Errorf("answered by %q", got)
	}
	if s := p.Status(); s.Route != "kernel" || s.Slots[0].Queue == nil {
		t.Errorf("%+v", s)
	}
	p.Stop()
	if err := p.ends(); err != nil {
		t.Error(err)
	}
	log.expect(t, "listening: address="+p.at+" route=kernel", "stopped: accepted_by_master=1 handed_off=1")
}

// A worker whose process cannot be started gives back the listeners that it was to have.
func TestRunCannotStart(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, _ := newConfig(t)
	workers.fails = errors.New("no such program")
	failed := make(chan error, 100)
	cfg.OnEvent = func(e supervisor.Event) {
		if e.Kind == supervisor.WorkerStartFailed {
			failed <- e.Err
		}
	}
	cfg.Groups = append(cfg.Groups, group(t))
	p := run(t, cfg)
	if err := fdtest.Receive(t, "a start that failed", failed); !errors.Is(err, workers.fails) {
		t.Error(err)
	}
	p.Stop()
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}

// A limit that a worker cannot be held to is said once in a generation.
func TestWarnIncapable(t *testing.T) {
	m, log := newFake(LinkNative)
	m.requests.MaxConnections, m.requests.Pings = 7, true
	ready := func(generation int, most int) {
		link := &workerLink{reports: reports{most: most}}
		m.warnIncapable(supervisor.Event{Kind: supervisor.WorkerReady, Seat: supervisor.Seat{Generation: generation}, PID: 10 + generation, Link: link})
	}
	m.warnIncapable(supervisor.Event{Kind: supervisor.WorkerStarted, Seat: supervisor.Seat{Generation: 1}, Link: &workerLink{reports: reports{}}})
	m.warnIncapable(supervisor.Event{Kind: supervisor.WorkerReady, Seat: supervisor.Seat{Generation: 1}, Link: &workerLink{}})
	m.requests.Slots = new(mailbox.Slots)
	ready(1, 7) // no request decides
	if log.String() != "" {
		t.Errorf("log:\n%s", log)
	}
	ready(2, 0)
	ready(2, 0)
	ready(3, 7)
	ready(4, 0)
	if lines := log.lines("worker cannot be held to everything"); len(lines) != 2 || !strings.Contains(lines[0], "--max-connections-per-slot") {
		t.Errorf("log:\n%s", log)
	}
	m.requestsDecide = true
	ready(5, 7)
	m.requests.Slots = nil // it was not asked to
	ready(6, 7)
	if lines := log.lines("worker cannot be held to everything"); len(lines) != 3 || !strings.Contains(lines[2], "the first request on one decides") || !strings.Contains(lines[2], "--slot-address") {
		t.Errorf("log:\n%s", log)
	}
}
