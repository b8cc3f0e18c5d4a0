package kernelroute

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// TestIdle: a worker may end when nobody waits at its berth and nobody's handshake can be under way any more.
func TestIdle(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		a := w.start("a", 0, true)
		w.fill("a")
		if !a.Idle() {
			t.Error("nobody has come, and a is not idle")
		}
		w.all[0].waits(0, 1)
		if a.Idle() {
			t.Error("somebody waits, and a is idle")
		}
		w.all[0].waits(0, 0)
		w.start("b", 0, true)
		w.fill("b")
		time.Sleep(handshakeTime)
		if a.Idle() {
			t.Error("a handshake may be under way, and a is idle")
		}
		time.Sleep(time.Nanosecond)
		if !a.Idle() {
			t.Error("handshakes are over, and a is not idle")
		}
		w.fill("a") // b has ended, and the slot is a's again
		if !a.Idle() {
			t.Error("a serves again, and is not idle")
		}
	})
}

// TestNextBerth: which berth the next worker gets, where a berth has been left: that of the same slot at once,
// another's when it has cooled down, none where somebody waits.
func TestNextBerth(t *testing.T) {
	left := func(w *world) { // berth 0 has been slot 0's, and is nobody's
		w.start("a", 0, true)
		w.fill("a")
		w.start("b", 0, true)
		w.fill("b")
		w.exits("a")
		w.expect("a has left", "-: now!; 1: wait!; 0 b: serves")
	}
	for name, tt := range map[string]struct {
		before func(w *world)
		slot   int
		want   int
	}{
		"of the slot itself":           {func(*world) {}, 0, 0},
		"where somebody waits":         {func(w *world) { w.remains(0) }, 0, 3},
		"of another slot":              {func(*world) {}, 2, 3},
		"of another, almost cool":      {func(*world) { time.Sleep(coolingTime) }, 2, 3},
		"of another, cool":             {func(*world) { time.Sleep(coolingTime + 1) }, 2, 0},
		"of another, where one waits":  {func(w *world) { time.Sleep(time.Hour); w.remains(0) }, 2, 3},
		"that cannot be clean":         {func(w *world) { w.all[0].spoiled[0] = true }, 0, 3},
		"never used":                   {func(w *world) { w.start("c", 2, true); w.exits("c") }, 4, 3},
		"that an empty slot has":       {func(*world) {}, 1, 1},
		"that somebody has":            {func(w *world) { w.start("c", 0, true) }, 0, 3},
		"of a worker that has no link": {func(w *world) { w.fails(0) }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, foreign, 2, func(w *world) {
				left(w)
				tt.before(w)
				l := w.start("next", tt.slot, true)
				if l.berth.number != tt.want {
					t.Errorf("berth %d, want %d", l.berth.number, tt.want)
				}
			})
		})
	}
}

// remains has a client wait at a member whom the master does not take.
func (w *world) remains(member int) {
	w.acceptors.stopAll()
	w.acceptors.running.Wait()
	w.all[0].waits(member, 1)
}

// fails starts a worker whose link cannot be made.
func (w *world) fails(slot int) {
	w.Helper()
	broken := errors.New("no socketpair")
	_, err := w.OpenLink(supervisor.Seat{Slot: slot}, func(*Lease) (Link, error) { return nil, broken })
	if !errors.Is(err, broken) {
		w.Errorf("%v, want %v", err, broken)
	}
}

// TestBerthIsClean: a berth is made as new, and blocking or not, before a worker gets it that shares it with nobody.
func TestBerthIsClean(t *testing.T) {
	for _, cfg := range []Config{taking, foreign} {
		inWorld(t, cfg, 1, func(w *world) {
			g := w.all[0]
			w.start("a", 0, true)
			if g.cleaned[0] == 0 || g.blocking[0] != cfg.Blocking {
				t.Errorf("%+v: cleaned %d times, blocking %v", cfg, g.cleaned[0], g.blocking[0])
			}
			before := g.cleaned[0]
			w.start("b", 0, true) // shares it
			if g.cleaned[0] != before {
				t.Error("cleaned while a has it")
			}
			w.exits("a")
			if g.cleaned[0] != before {
				t.Error("cleaned while b has it")
			}
			w.exits("b")
			if g.cleaned[0] == before {
				t.Error("not cleaned when nobody has it")
			}
		})
	}
}

// TestLeaseEnds: with the worker's process, unless others of its Group go on: they have the listeners, too.
func TestLeaseEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		events []supervisor.Event
		ends   bool
	}{
		"exited":           {[]supervisor.Event{{Kind: supervisor.WorkerExited}}, true},
		"others go on":     {[]supervisor.Event{{Kind: supervisor.WorkerExited, Rest: []int{4711}}}, false},
		"and are gone":     {[]supervisor.Event{{Kind: supervisor.WorkerExited, Rest: []int{4711}}, {Kind: supervisor.WorkerGone}}, true},
		"was not started":  {[]supervisor.Event{{Kind: supervisor.WorkerStartFailed}}, true},
		"is ready":         {[]supervisor.Event{{Kind: supervisor.WorkerReady}}, false},
		"is killed":        {[]supervisor.Event{{Kind: supervisor.WorkerKilled}}, false},
		"is told to leave": {[]supervisor.Event{{Kind: supervisor.WorkerTerminated}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, foreign, 1, func(w *world) {
				l := w.start("a", 0, true)
				for _, e := range tt.events {
					e.Link = l.link
					w.HandleEvent(e)
				}
				if ended := len(l.berth.leases) == 0; ended != tt.ends {
					t.Errorf("ended is %v, want %v", ended, tt.ends)
				}
				w.HandleEvent(supervisor.Event{Kind: supervisor.WorkerExited, PID: 99999}) // of nobody we know
			})
		})
	}
}

// TestStartOvertaken: who was overtaken while its start hangs, which no event says, is not the one that clients of its slot wait for.
func TestStartOvertaken(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		w.start("a", 0, true)
		w.fill("a")
		if _, err := w.OpenLink(supervisor.Seat{Slot: 0}, func(*Lease) (Link, error) { return &fakeLink{name: "b", accepts: true}, nil }); err != nil {
			t.Fatal(err)
		}
		w.start("c", 0, true)
		w.exits("a")
		w.Empty(0)
		w.expect("a ends", "-: now!; - b: none; 0 c: wait!")
	})
}

// TestNoOtherListener: where no listener can be opened, a worker shares that of the one it replaces, and a slot that
// of another. Where that one is spoiled, the worker cannot be started.
func TestNoOtherListener(t *testing.T) {
	full := errors.New("too many open files")
	inWorld(t, foreign, 1, func(w *world) {
		w.start("a", 0, true)
		w.fill("a")
		w.all[0].growErr = full
		w.start("b", 0, true)
		w.expect("b shares", "0 a b: serves")
		w.exits("b")
		if w.logged("shares its slot's listener", "slot=0", "too many open files") != 1 {
			t.Errorf("not said: %s", w.log)
		}
		w.Resize(2)
		if w.logged("a slot has no listener of its own", "slot=1") != 1 || w.berthOf[1] != w.berths[0] {
			t.Errorf("not said: %s", w.log)
		}
		w.Resize(1)

		w.all[0].spoiled[0] = true
		w.all[0].found.Locked = []int{0}
		w.repair()
		opened := false
		_, err := w.OpenLink(supervisor.Seat{Slot: 0}, func(*Lease) (Link, error) { opened = true; return nil, nil })
		if !errors.Is(err, full) || opened {
			t.Errorf("opened %v: %v", opened, err)
		}
	})
}

// TestCleanFails: a worker gets no listener that could not be made as new. When that can be done it is one as any other.
func TestCleanFails(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		w.start("a", 0, true)
		w.fill("a")
		w.all[0].cleanErr = errors.New("no memory")
		w.exits("a")
		w.Empty(0)
		w.start("b", 0, true)
		w.fill("b")
		w.expect("b has another one", "-: now!; 0 b: serves")
		w.all[0].cleanErr = nil
		w.start("c", 0, true)
		w.expect("c gets it", "- c: none; 0 b: serves")
		if w.logged("cannot make a slot's listener as new", "no memory") == 0 {
			t.Errorf("not said: %s", w.log)
		}
	})
}

// TestSpoiledBerth: a worker whose listener is spoiled goes on; the next one gets another, and when the slot is empty new
// clients come there.
func TestSpoiledBerth(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		w.start("a", 0, true)
		w.fill("a")
		w.all[0].found.Locked = []int{0}
		w.all[0].spoiled[0] = true
		for range 3 {
			w.repair()
		}
		w.expect("a's listener is spoiled", "0 a: serves")
		w.exits("a")
		w.Empty(0)
		w.expect("a has ended", "-: now!; 0: wait!")
		w.start("b", 0, true)
		w.fill("b")
		w.expect("b is there", "-: now!; 0 b: serves")
		if n := w.logged("has locked the socket filter", "slot=0", "handfast drain 0"); n != 1 {
			t.Errorf("said %d times, want once: %s", n, w.log)
		}
	})
}

// TestLeaseOffers: what a worker is shown of its listeners. A lease that is nil has none.
func TestLeaseOffers(t *testing.T) {
	inWorld(t, foreign, 2, func(w *world) {
		l := w.start("a", 1, true)
		offer := l.Offer()
		if len(offer) != 1 || offer[0].FD < 0 || offer[0].Client != netip.MustParseAddrPort("10.0.0.99:80") {
			t.Errorf("offered %+v", offer)
		}
		if l.Listener(netip.MustParseAddrPort("10.0.0.99:81")) != nil {
			t.Error("a listener on another address")
		}
		if l.Listener(netip.MustParseAddrPort("10.0.0.99:80")) != w.all[0].members[1] || l.Files()[0] != w.all[0].members[1] {
			t.Error("another slot's listener")
		}
		if l.Follows() {
			t.Error("follows")
		}
	})
	if none := (*Lease)(nil); none.Files() != nil || none.Offer() != nil || none.Listener(netip.AddrPort{}) != nil {
		t.Error("nobody has listeners")
	}
}

// TestSteerFails: it is said, and nothing else changes.
func TestSteerFails(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		w.all[0].steerErr = errors.New("no memory")
		w.Resize(2)
		if w.logged("the kernel does not give clients to their slots", "slots=2", "no memory") != 1 {
			t.Errorf("not said: %s", w.log)
		}
	})
}
