package master

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/supervisor"
)

// sink takes connections and closes them.
type sink struct{ taken chan int }

func (s sink) Deliver(conns []fdpass.Handoff) (int, error) {
	for _, c := range conns {
		fdpass.CloseConnections(c.FD)
	}
	s.taken <- len(conns)
	return len(conns), nil
}

// newRoutes returns a Master that nobody runs, by either route, and what ends it.
func newRoutes(t *testing.T, kernel bool) (m *Master, at string, end func()) {
	t.Helper()
	cfg, _, _ := newConfig(t)
	if kernel {
		cfg.Groups = append(cfg.Groups, group(t))
		at = cfg.Groups[0].Addr().String()
	} else {
		cfg.Listeners = []net.Listener{listen(t), strange{nil}}
		at = cfg.Listeners[0].Addr().String()
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m, at, func() {
		m.balancer.Shutdown(t.Context())
		m.route.close(t.Context())
		if !kernel {
			cfg.Listeners[0].Close()
		}
	}
}

// TestRoutes: either route says of itself what it can do.
func TestRoutes(t *testing.T) {
	fdtest.NoLeaks(t)
	for name, kernel := range map[string]bool{"master": false, "kernel": true} {
		m, at, end := newRoutes(t, kernel)
		r := m.route
		if got := r.addresses(); len(got) != 1 || got[0].String() != at {
			t.Errorf("%s: at %v, want %s alone", name, got, at)
		}
		if waiting, ok := r.queue(0); waiting != 0 || ok != kernel {
			t.Errorf("%s: queue %d, %v", name, waiting, ok)
		}
		all := r.balancers()
		if r.String() != name || r.acceptsAll() == kernel || !slices.Contains(all, m.balancer) || (len(all) == 2) != kernel {
			t.Errorf("%s: %s, accepts all %v, %d balancers", name, r, r.acceptsAll(), len(all))
		}
		end()
	}
}

// By either route the supervisor fills slots with what takes connections, and empties them.
func TestRouteFills(t *testing.T) {
	fdtest.NoLeaks(t)
	for _, kernel := range []bool{false, true} {
		m, at, end := newRoutes(t, kernel)
		r, taken := m.route, sink{make(chan int, 10)}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		if !kernel {
			m.route.(*masterRoute).listeners = m.route.(*masterRoute).listeners[:1]
		}
		go func() { served <- r.serve(ctx, ctx, time.Second) }()
		r.Resize(1)
		client := func() {
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if n := fdtest.Receive(t, "a connection", taken.taken); n != 1 {
				t.Errorf("kernel's route: %v: %d connections", kernel, n)
			}
		}
		r.Fill(0, &workerLink{worker: taken})
		client()
		r.Empty(0)
		parked, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer parked.Close()
		fdtest.Eventually(t, "it is parked", func() bool { return m.Stats().Parked == 1 })
		r.Fill(0, &workerLink{worker: taken})
		if n := fdtest.Receive(t, "the parked connection", taken.taken); n != 1 {
			t.Errorf("kernel's route: %v: %d connections", kernel, n)
		}
		r.handleEvent(supervisor.Event{Kind: supervisor.WorkerExited, PID: firstPID}) // which has no listener of ours
		cancel()
		if err := fdtest.Receive(t, "the end of serving", served); err != nil {
			t.Error(err)
		}
		fdtest.Eventually(t, "both are counted", func() bool { s := m.Stats(); return s.Accepted == 2 && s.HandedOff == 2 })
		end()
	}
}

// A listener that fails ends the others, and each failure is told.
func TestMasterRouteFails(t *testing.T) {
	fdtest.NoLeaks(t)
	b, err := balancer.New(balancer.DefaultConfig(), balancer.NewTable(1))
	if err != nil {
		t.Fatal(err)
	}
	r := &masterRoute{Table: b.Table(), balancer: b, listeners: []net.Listener{listen(t), strange{listen(t)}, strange{listen(t)}}, log: new(journal).logger()}
	err = r.serve(t.Context(), t.Context(), 0)
	if all, ok := err.(interface{ Unwrap() []error }); !ok || strings.Count(err.Error(), "strange") != 2 {
		t.Errorf("%v, %v", err, all)
	}
	none := &masterRoute{balancer: b}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("over"))
	if err := none.serve(ctx, ctx, 0); err != nil || len(none.addresses()) != 0 {
		t.Error(err)
	}
}
