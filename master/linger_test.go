package master

import (
	"fmt"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/supervisor"
)

// comes returns what a client is answered whose session names a worker; nil: it has none.
func (p *play) comes(w *fakeWorker) string {
	p.Helper()
	c := p.dial()
	defer c.Close()
	session := "none"
	if w != nil {
		session = "s1." + w.route
	}
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: test\r\nCookie: session=%s\r\n\r\n", session)
	return p.answer(c)
}

// stateOf returns the state of a worker that is in no slot, and when it ends at the earliest and at the latest.
func (p *play) stateOf(w *fakeWorker) (state string, until, deadline *time.Time) {
	for _, d := range p.Status().Draining {
		if d.PID == w.pid {
			return d.State, d.Until, d.Deadline
		}
	}
	return "gone", nil, nil
}

// TestLinger: a worker that was replaced goes on for requests that name it, until it is to drain; then they go to the one in its slot.
func TestLinger(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, log := newConfig(t)
	sessions, err := forwarded.ParseSessions("cookie:session")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Balancer.Clients.Rules.Sessions, cfg.SessionIdle = sessions, time.Hour/2
	p := run(t, cfg)
	p.isReady()
	first := workers.worker(0)
	if first.route == "" || p.comes(nil) != "0#0" || p.comes(first) != "0#0" {
		t.Fatalf("it has the token %q", first.route)
	}
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	state, until, deadline := p.stateOf(first)
	if state != "lingering" || until == nil || deadline == nil || until.After(time.Now().Add(cfg.SessionIdle)) || until.Before(time.Now().Add(cfg.SessionIdle-fdtest.Patience)) || !deadline.After(*until) {
		t.Fatalf("%s, %v, %v", state, until, deadline)
	}
	if old, fresh := p.comes(first), p.comes(nil); old != "0#0" || fresh != "0#1" {
		t.Errorf("a session of the first worker is with %s, a new client with %s", old, fresh)
	}
	if n, err := p.DrainLingering(func(seat supervisor.Seat) bool { return seat.Generation == 1 }); n != 1 || err != nil {
		t.Errorf("%d drain, %v", n, err)
	}
	if got := p.comes(first); got != "0#1" {
		t.Errorf("when it drains the session is with %s", got)
	}
	fdtest.Eventually(t, "it is gone", func() bool { state, _, _ := p.stateOf(first); return state == "gone" })
	log.expect(t, "worker lingers: it was replaced, and clients may come back to it: slot=0 pid=1073741824 generation=1 until=",
		` change_with="--session-idle, --drain-affinity, --drain-timeout"`,
		"worker lingers no longer, and drains: slot=0 pid=1073741824 generation=1 lingered=", `reason="that was asked for"`)
}

// TestLingerUntil: it is asked again while requests come back, and drains by itself when none has for a while.
func TestLingerUntil(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, log := newConfig(t)
	sessions, err := forwarded.ParseSessions("cookie:session")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Balancer.Clients.Rules.Sessions, cfg.SessionIdle = sessions, 400*time.Millisecond
	p := run(t, cfg)
	p.isReady()
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, since := workers.worker(0), time.Now()
	for time.Since(since) < 2*cfg.SessionIdle { // else it could drain
		before := time.Now()
		if got := p.comes(first); got != "0#0" && time.Since(before) < cfg.SessionIdle/4 {
			t.Fatalf("the session is with %s after %v", got, time.Since(since))
		}
	}
	fdtest.Eventually(t, "it drains, and is gone", func() bool { state, _, _ := p.stateOf(first); return state == "gone" })
	log.expect(t, "lingered=", `reason="no request has named it for so long"`)
	if n := len(first.signals); n != 0 {
		t.Errorf("it got %d signals", n)
	}
}

// TestDrainAffinity: so it does for clients that are known by their address.
func TestDrainAffinity(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, _ := newConfig(t)
	cfg.DrainAffinity = time.Hour
	p := run(t, cfg)
	p.isReady()
	p.comes(nil)
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if state, _, _ := p.stateOf(workers.worker(0)); state != "lingering" || p.comes(nil) != "0#0" {
		t.Errorf("the first worker is %s", state)
	}
	p.DrainLingering(func(supervisor.Seat) bool { return true })
	if got := p.comes(nil); got != "0#1" {
		t.Errorf("the client is with %s", got)
	}
}

// TestLastCall: a worker without a name drains at once. In the program after an upgrade requests have had no time to come back before that began.
func TestLastCall(t *testing.T) {
	n := newNames(nil)
	n.table = balancer.NewTable(1)
	if got := n.lastCall(&workerLink{}, time.Now()); !got.IsZero() {
		t.Errorf("%v of a worker without a name", got)
	}
	link := &workerLink{named: &named{of: n, name: clientip.Name{Start: 1}}}
	for replaced, want := range map[time.Time]time.Time{n.since.Add(-time.Hour): n.since, n.since.Add(time.Hour): n.since.Add(time.Hour)} {
		if got := n.lastCall(link, replaced); !got.Equal(want) {
			t.Errorf("%v of one that was replaced at %v, want %v", got, replaced, want)
		}
	}
}
