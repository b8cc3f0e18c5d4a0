package master

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reexec"
)

// leave returns what a Master that has no worker leaves to the next program, with duplicates of the descriptors.
func (p *play) leave() *reexec.Bundle {
	p.Helper()
	next := reexec.NewBundle(p.version)
	keep := func(fd int) int {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		fdtest.Check(p.T, err)
		return next.Keep(fd)
	}
	err := p.supervisor.Quiesce(true, func() error {
		b, err := p.save(func(*reexec.Bundle) error { return nil }, true)
		if err != nil {
			return err
		}
		var state saved
		if err := b.Get(part, &state); err != nil {
			return err
		}
		for i := range state.Listeners {
			state.Listeners[i].FD = keep(state.Listeners[i].FD)
		}
		for i := range state.Parked {
			state.Parked[i].FD = keep(state.Parked[i].FD)
		}
		return errors.Join(p.supervisor.Save(next), next.Put(part, state))
	})
	if err != nil {
		p.Fatal(err)
	}
	return next
}

// The next program goes on with listeners, counts, and whoever is parked.
func TestAdopt(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, _ := newConfig(t)
	workers.fails = errors.New("not yet")
	cfg.Supervisor.Workers = 2
	cfg.Listeners = []net.Listener{listen(t), listen(t)}
	before := run(t, cfg)
	c := before.dial()
	fdtest.Eventually(t, "the connection is parked", func() bool { return before.Stats().Parked == 1 })
	old := before.route.addresses()[1].String()
	b := before.leave()

	next, after, log := newConfig(t)
	next.Version, next.Supervisor.Workers = "2", 2
	if err := next.Adopt(b); err != nil {
		t.Fatal(err)
	}
	if link, kernel := next.Adopted(); link != LinkNative || kernel {
		t.Errorf("link %v, kernel's route: %v", link, kernel)
	}
	next.Retire("192.0.2.1:80") // nobody listens there
	next.Retire(old)
	if len(next.Listeners) != 1 || len(next.retired) != 1 {
		t.Fatalf("%d listeners, %d that are not wanted any more", len(next.Listeners), len(next.retired))
	}
	p := run(t, next)
	if p.at != before.at || !p.started.Equal(before.started) {
		t.Errorf("at %s, want %s; started at %v, want %v", p.at, before.at, p.started, before.started)
	}
	if got := p.answer(c); !strings.Contains(got, "#") {
		t.Errorf("the parked one is answered with %q", got)
	}
	p.isReady()
	s := p.Status()
	if u := s.Upgrade; u.Count != 1 || u.From != "1" || u.At == nil || u.Error != "" || len(s.Slots) != 2 {
		t.Errorf("%+v, %d slots", u, len(s.Slots))
	}
	fdtest.Eventually(t, "it is counted", func() bool { s := p.Stats(); return s.Accepted == 1 && s.HandedOff == 1 })
	if n := after.count(); n != 2 {
		t.Errorf("%d workers were started", n)
	}
	log.expect(t, "upgraded: from=1 to=2 parked=1")
}

// The kernel's route is taken over as it was.
func TestAdoptKernelRoute(t *testing.T) {
	cfg, workers, _ := newConfig(t)
	workers.fails = errors.New("not yet")
	cfg.Groups = append(cfg.Groups, group(t))
	p := run(t, cfg)
	err := p.supervisor.Quiesce(false, func() error {
		b, err := p.save(func(*reexec.Bundle) error { return nil }, false)
		if err != nil {
			return err
		}
		var state saved
		if err := b.Get(part, &state); err != nil {
			return err
		}
		if state.KernelRoute == nil || len(state.Listeners) != 0 || len(state.Parked) != 0 || !b.IsDryRun() {
			t.Errorf("%+v", state)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestAdoptFails: the error says what cannot be taken over.
func TestAdoptFails(t *testing.T) {
	for want, state := range map[string]*saved{
		"has left nothing": nil,
		"descriptor 1000":  {Listeners: []balancer.SavedListener{{FD: 1000}}},
	} {
		b := reexec.NewBundle("before")
		if state != nil {
			fdtest.Check(t, b.Put(part, state))
		}
		var cfg Config
		if err := cfg.Adopt(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	file, err := os.Open(os.DevNull)
	fdtest.Check(t, err)
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	fdtest.Check(t, err)
	b := reexec.NewBundle("before")
	fdtest.Check(t, b.Put(part, saved{Listeners: []balancer.SavedListener{{FD: b.Keep(fd)}}}))
	var cfg Config
	if err := cfg.Adopt(b); err == nil || len(cfg.Listeners) != 0 {
		t.Errorf("a listener that is none: %v", err)
	}
	parked := balancer.SavedParked{}
	parked.FD = 1000
	state := &saved{Parked: []balancer.SavedParked{parked}}
	b = reexec.NewBundle("before")
	cfg, _, _ = newConfig(t)
	cfg.Listeners = []net.Listener{listen(t)}
	cfg.resume, cfg.Supervisor.Resume = state, b
	if m, err := New(cfg); err == nil || m != nil {
		t.Errorf("a parked connection that is none: %v", err)
	}
}

// Until the next program runs this one goes on, and says why it still does.
func TestReplaceFails(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, _, _ := newConfig(t)
	p := run(t, cfg)
	p.isReady()
	save, before := func(*reexec.Bundle) error { return nil }, func() { t.Error("the next program is about to run") }
	missing := reexec.Program{Path: filepath.Join(t.TempDir(), "missing"), Args: []string{"missing"}, Env: os.Environ()}
	if err := p.Replace(t.Context(), missing, save, before); err == nil {
		t.Error("a program that is not there")
	}
	full := errors.New("no room")
	if err := p.Replace(t.Context(), missing, func(*reexec.Bundle) error { return full }, before); !errors.Is(err, full) {
		t.Error(err)
	}
	if u := p.Status().Upgrade; u.Error != full.Error() || u.At == nil || u.Count != 0 || time.Since(*u.At) > time.Minute {
		t.Errorf("%+v", u)
	}
	p.replacing.Store(true)
	if err := p.Replace(t.Context(), missing, save, before); !errors.Is(err, errUpgrading) {
		t.Error(err)
	}
	p.replacing.Store(false)
	if got := p.asks(); got != "0#0" {
		t.Errorf("answered by %q", got)
	}
	p.Stop()
	if err := p.Replace(t.Context(), missing, save, before); err == nil {
		t.Error("replaced while it stops")
	}
	p.ends()
}
