package worker_test

import (
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

// TestSpreadWindow: the parts of all slots are the last part of the timeout, without gaps, the last slot's first.
func TestSpreadWindow(t *testing.T) {
	const timeout, over = time.Hour, 20 * time.Minute
	end := timeout
	for slot := range 4 {
		after, long := worker.SpreadWindow(worker.Place{Slot: slot, Slots: 4}, timeout, over)
		if after+long != end || long != over/4 {
			t.Errorf("slot %d: %v after %v, want %v until %v", slot, long, after, over/4, end)
		}
		end = after
	}
	if end != timeout-over {
		t.Errorf("the first one begins after %v", end)
	}
}

// TestSpread: a worker that drains closes what is open, one connection after the other, in its slot's part of the time; who has gone before is no gap.
func TestSpread(t *testing.T) {
	fdtest.NoLeaks(t)
	for name, value := range map[string]string{
		fdpass.EnvSlot: "1", fdpass.EnvSlots: "2", fdpass.EnvGeneration: "1",
		fdpass.EnvDrainTimeout: "3600", fdpass.EnvDrainSpread: "1200",
	} {
		t.Setenv(name, value)
	}
	master, ln := mailbox(t, worker.Config{})
	now, next := make(chan time.Time), make(chan bool)
	worker.SpreadWaits(ln, func(until time.Time) bool { now <- until; return <-next })
	clients := handOff(t, master, fdpass.TypeHandoff, 5)
	for range clients {
		closing(t, accept(t, ln))
	}
	gone := accepted(t, ln, master)
	fdtest.Check(t, gone.Close())
	began := time.Now()
	fdtest.Check(t, master.CloseWrite())
	acceptClosed(t, ln)
	first := <-now
	if after := first.Sub(began); after < 40*time.Minute || after > 41*time.Minute {
		t.Errorf("it begins after %v, want 40 minutes", after)
	}
	next <- true
	for i := range clients {
		if at := (<-now).Sub(first); at != time.Minute+2*time.Minute*time.Duration(i) || ln.Open() != len(clients)-i {
			t.Errorf("connection %d: closed %v later, %d are open", i, at, ln.Open())
		}
		next <- true
	}
	idle(t, ln)
	for _, c := range clients {
		readEOF(t, c)
	}
}

// TestSpreadEnds: with the last connection.
func TestSpreadEnds(t *testing.T) {
	fdtest.NoLeaks(t)
	for name, value := range map[string]string{
		fdpass.EnvSlot: "0", fdpass.EnvSlots: "1", fdpass.EnvGeneration: "1",
		fdpass.EnvDrainTimeout: "3600", fdpass.EnvDrainSpread: "0.5",
	} {
		t.Setenv(name, value)
	}
	master, ln := mailbox(t, worker.Config{})
	conn := accepted(t, ln, master)
	fdtest.Check(t, master.CloseWrite())
	acceptClosed(t, ln)
	fdtest.Check(t, conn.Close())
	idle(t, ln)
}

// accepted returns the worker's end of one that is handed off.
func accepted(t *testing.T, ln *worker.Listener, master *fdpass.Conn) *worker.Conn {
	t.Helper()
	handOff(t, master, fdpass.TypeHandoff, 1)
	return accept(t, ln)
}
