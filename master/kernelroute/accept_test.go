package kernelroute

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/sockdiag"
	"github.com/handfast/handfast/master/supervisor"
)

// comes has a client of a slot wait at a member, which was the first of so many.
func (w *world) comes(member, slot int) {
	w.machineMu.Lock()
	defer w.machineMu.Unlock()
	n := len(w.sockets)
	w.sockets = append(w.sockets, sockdiag.Socket{
		State: sockdiag.Established, Family: unix.AF_INET, Cookie: uint64(n + 1),
		Local:  netip.MustParseAddrPort("10.0.0.99:80"),
		Remote: netip.AddrPortFrom(clientOf(w.hash, slot, len(w.berthOf)), uint16(1000+n)),
	})
	w.all[0].waits(member, n+1)
}

// TestEmptySlotIsAcceptedFrom: clients of an empty slot wait for the next worker for queueTime. Then the master accepts,
// until a worker does.
func TestEmptySlotIsAcceptedFrom(t *testing.T) {
	inWorld(t, taking, 1, func(w *world) {
		time.Sleep(queueTime - 1)
		w.notes("not yet")
		time.Sleep(time.Nanosecond)
		w.notes("nobody has come in time", "0.1 accepts at A0")
		w.start("a", 0, true)
		time.Sleep(time.Second)
		w.notes("a is not ready")
		w.fill("a")
		w.notes("a is", "1.1 leaves A0")

		w.Empty(0)
		time.Sleep(queueTime / 2)
		w.exits("a")
		w.start("b", 0, true)
		w.fill("b")
		time.Sleep(time.Minute)
		w.notes("b was in time")
	})
}

// TestWorkerThatOnlyTakes: for a worker that takes connections and accepts from no listener the master accepts at
// once, and as long as the worker serves and drains.
func TestWorkerThatOnlyTakes(t *testing.T) {
	inWorld(t, taking, 1, func(w *world) {
		w.start("a", 0, false)
		w.fill("a")
		w.notes("a is ready", "0 accepts at A0")
		w.start("b", 0, true)
		w.fill("b")
		w.notes("b takes over", "0 leaves A0")
		time.Sleep(queueTime)
		w.notes("who waits at a's listener still is handed off", "0.1 accepts at A0")
		w.exits("a")
		w.notes("and nobody else will accept there", "0.1 leaves A0", "0.1 accepts at A0")
		w.start("c", 0, true)
		w.notes("c gets that listener", "0.1 leaves A0")
	})
}

// TestRefusedWhenOverdue: where workers cannot be handed connections each client of an empty slot waits for as long as
// the patience, whenever others came, and is refused then.
func TestRefusedWhenOverdue(t *testing.T) {
	inWorld(t, foreign, 2, func(w *world) {
		time.Sleep(tickAtTest / 2) // between two looks
		for range 3 {
			w.comes(1, 1)
			time.Sleep(time.Second)
		}
		time.Sleep(patienceAtTest - 3*time.Second - 1)
		w.notes("nobody has waited for so long")
		time.Sleep(tickAtTest)
		w.notes("the first one has, since the look that found it", "5.1 refuses 1 at A1")
		w.machineMu.Lock()
		w.sockets = w.sockets[1:]
		w.machineMu.Unlock()
		w.start("a", 1, true)
		w.fill("a")
		time.Sleep(time.Hour)
		w.notes("the others are a's")
	})
}

// TestRefusedThoughSlotIsGone: clients that wait for a worker whose slot is removed are refused when that was so for as long as the
// patience, whatever slot they belong to now.
func TestRefusedThoughSlotIsGone(t *testing.T) {
	inWorld(t, foreign, 2, func(w *world) {
		for slot, name := range []string{"a", "b"} {
			w.start(name, slot, true)
			w.fill(name)
		}
		w.comes(1, 1)
		w.Resize(1)
		time.Sleep(patienceAtTest - 1)
		w.notes("b drains, and may accept it")
		time.Sleep(tickAtTest)
		w.notes("it has not", "5 refuses 1 at A1")
	})
}

// TestRefusedAtOnce: a worker that serves, but not at this address, and that cannot be handed connections, keeps nobody
// waiting.
func TestRefusedAtOnce(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		w.start("a", 0, false)
		w.fill("a")
		w.notes("nobody has come")
		w.comes(0, 0)
		w.comes(0, 0)
		time.Sleep(tickAtTest)
		w.notes("refused", "0.1 refuses 2 at A0")
	})
}

// TestLeftBerthIsEmptied: clients that wait at the listener of a worker that has ended, and that no slot's clients come
// to any more, are refused at once.
func TestLeftBerthIsEmptied(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		w.start("a", 0, true)
		w.fill("a")
		w.start("b", 0, true)
		w.fill("b")
		w.comes(0, 0)
		time.Sleep(patienceAtTest - tickAtTest)
		w.notes("a drains and may accept them")
		w.exits("a")
		time.Sleep(tickAtTest)
		w.notes("a has ended", "4.9 refuses 1 at A0")
	})
}

// TestFillAsksWithoutLock: a link may ask for listeners while it is asked whether its worker accepts.
func TestFillAsksWithoutLock(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		l := w.start("a", 0, true)
		asked := 0
		l.link.(*fakeLink).asked = func(at netip.AddrPort) {
			if asked++; l.Listener(at) != w.all[0].members[0] {
				t.Errorf("%v has another listener", at)
			}
		}
		w.fill("a")
		if asked != 1 {
			t.Errorf("asked %d times, want once", asked)
		}
	})
}

// TestFailedLoopBeginsAnew: a worker that becomes ready has accepting begin anew, should it have failed.
func TestFailedLoopBeginsAnew(t *testing.T) {
	inWorld(t, taking, 1, func(w *world) {
		w.start("a", 0, false)
		w.fill("a")
		w.notes("a is ready", "0 accepts at A0")
		w.fill("a")
		w.notes("again", "0 leaves A0", "0 accepts at A0")
	})
}

// TestQueueOfSlot counts the connections that wait for a slot's workers, those that drain among them.
func TestQueueOfSlot(t *testing.T) {
	inWorld(t, foreign, 2, func(w *world) {
		w.start("a", 0, true)
		w.fill("a")
		w.start("b", 0, true)
		w.fill("b")
		w.all[0].waits(0, 3)
		w.all[0].waits(1, 10)
		w.all[0].waits(2, 4)
		if zero, one := w.Queue(0), w.Queue(1); zero != 7 || one != 10 {
			t.Errorf("%d and %d wait, want 7 and 10", zero, one)
		}
	})
}

// TestAcceptsAtSomeAddresses: the rule looks at each address for itself.
func TestAcceptsAtSomeAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, taking, 1)
		other := w.group("B", "10.0.0.99:81", 1)
		w.mu.Lock()
		w.addGroup(other)
		w.mu.Unlock()
		l := w.start("a", 0, false)
		link := l.link.(*fakeLink)
		link.asked = func(at netip.AddrPort) { link.accepts = at.Port() == 81 }
		w.fill("a")
		w.notes("a accepts at one address, and takes what comes to the other", "0 accepts at A0")
		if files := l.Files(); len(files) != 2 || files[1] != other.members[0] {
			t.Errorf("%d listeners", len(files))
		}
		if addrs := w.Addresses(); len(addrs) != 2 || addrs[1].Port() != 81 {
			t.Errorf("listens at %v", addrs)
		}
		w.happens(supervisor.WorkerExited, "a")
	})
}
