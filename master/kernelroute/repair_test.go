package kernelroute

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// TestRepairTells: what workers have done to their listeners is said once for each worker, with its slot and process.
func TestRepairTells(t *testing.T) {
	const shut, filtered = "has shut down its slot's listener", "has set a socket filter"
	inWorld(t, foreign, 1, func(w *world) {
		w.start("a", 0, true)
		w.fill("a")
		for range 3 {
			w.all[0].found = reuseport.Repaired{Shut: []int{0}, Filtered: []int{0}}
			w.repair()
		}
		if w.logged(shut, "slot=0", "pid=1001", "address=10.0.0.99:80") != 1 || w.logged(filtered, "slot=0", "pid=1001") != 1 {
			t.Errorf("want one line of each: %s", w.log)
		}
		w.exits("a")
		w.Empty(0)
		w.start("b", 0, true)
		w.all[0].found.Shut = []int{0}
		w.repair()
		if w.logged(shut, "slot=0", "pid=1002") != 1 {
			t.Errorf("the next worker does it, too: %s", w.log)
		}
	})
}

// TestRepairAcceptsAnew: the master's accepting from a listener that was shut down had failed.
func TestRepairAcceptsAnew(t *testing.T) {
	inWorld(t, taking, 1, func(w *world) {
		w.start("a", 0, false)
		w.fill("a")
		w.notes("a is ready", "0 accepts at A0")
		w.all[0].found.Shut = []int{0}
		w.repair()
		w.notes("repaired", "0 leaves A0", "0 accepts at A0")
	})
}

// TestRepairFails: that is said when it begins and when it changes, not with each look.
func TestRepairFails(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		for _, err := range []error{errors.New("first"), errors.New("first"), errors.New("second"), nil, nil, errors.New("second")} {
			w.all[0].repairErr = err
			w.repair()
		}
		if first, second := w.logged("err=first"), w.logged("err=second"); first != 1 || second != 2 {
			t.Errorf("%d and %d lines, want 1 and 2: %s", first, second, w.log)
		}
	})
}

// TestRepairFailsSomewhere: that another address is all right does not make the failure a new one.
func TestRepairFailsSomewhere(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		w.mu.Lock()
		w.addGroup(w.group("B", "10.0.0.99:81", 1))
		w.mu.Unlock()
		w.all[0].repairErr = errors.New("certain")
		for range 3 {
			w.repair()
		}
		if n := w.logged("err=certain"); n != 1 {
			t.Errorf("%d lines, want 1: %s", n, w.log)
		}
	})
}

// TestRepairWhenOneEnds: what a worker has done is put right at once when it has ended, since others suffer. Strangers are
// for Serve to log, which may take its time.
func TestRepairWhenOneEnds(t *testing.T) {
	for kind, repairs := range map[supervisor.EventKind]bool{
		supervisor.WorkerExited: true, supervisor.WorkerGone: true, supervisor.WorkerReady: false, supervisor.WorkerTerminated: false,
	} {
		inWorld(t, foreign, 1, func(w *world) {
			w.start("a", 0, true)
			w.all[0].found.Joined = []reuseport.Stranger{{Inode: 4711}}
			w.happens(kind, "a")
			if repaired := w.all[0].looks() > 0; repaired != repairs {
				t.Errorf("%v: repaired is %v", kind, repaired)
			}
			if w.logged("listens on the same address") != 0 {
				t.Errorf("%v: said in the supervisor's loop: %s", kind, w.log)
			}
			w.repair()
			if w.logged("listens on the same address") != 1 {
				t.Errorf("%v: not said later: %s", kind, w.log)
			}
		})
	}
}

// TestStrangers: another process that listens at our address is named, with what that means. For a worker the log says how
// to share the listener.
func TestStrangers(t *testing.T) {
	joins := func(w *world, owned ...reuseport.Owner) {
		time.Sleep(time.Hour)
		w.owned = owned
		w.all[0].found.Joined = []reuseport.Stranger{{Inode: 4711}}
		w.repair()
	}
	inWorld(t, Config{Blocking: true, SharingRemedy: "do not"}, 1, func(w *world) {
		joins(w)
		if w.logged("another process, which cannot be seen", "address=10.0.0.99:80", "all of them after that") != 1 {
			t.Errorf("one that nobody sees: %s", w.log)
		}
		joins(w, reuseport.Owner{PID: 1 << 30, Command: "nc -l"}, reuseport.Owner{PID: 1<<30 + 1})
		if w.logged("another process listens", "pid=1073741824", "nc -l", "remedy=\"end it") != 1 {
			t.Errorf("one that is seen: %s", w.log)
		}
		l := w.start("a", 0, true)
		l.pid = unix.Getpgrp() // of which we are, too
		joins(w, reuseport.Owner{PID: unix.Getpid(), Command: "ours"})
		if w.logged("worker listens with a socket of its own", "slot=0", "command=ours", "remedy=\"do not\"") != 1 {
			t.Errorf("a worker: %s", w.log)
		}
	})
}

// TestManyStrangers: anybody can join and leave again and again. One in strangerInterval is told of, with how many
// were not.
func TestManyStrangers(t *testing.T) {
	inWorld(t, foreign, 1, func(w *world) {
		time.Sleep(time.Hour)
		for range 5 {
			w.all[0].found.Joined = []reuseport.Stranger{{Inode: 1}, {Inode: 2}}
			w.repair()
		}
		time.Sleep(strangerInterval)
		w.all[0].found.Joined = []reuseport.Stranger{{Inode: 3}}
		w.repair()
		synctest.Wait()
		if w.logged("another process") != 2 || w.logged("another process", "left_out=9") != 1 {
			t.Errorf("want two lines, the second one after 9 that were left out: %s", w.log)
		}
	})
}
