package worker_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

// nextReport waits for the worker's next report, whatever else it says before.
func nextReport(t testing.TB, master *fdpass.Conn) fdpass.Report {
	t.Helper()
	for {
		if m := next(t, master); m.Type == fdpass.TypeReport {
			return m.Report
		}
	}
}

// TestReports: the master learns how many connections are open and were accepted, also
// when the worker has left its mailbox and drains.
func TestReports(t *testing.T) {
	fdtest.NoLeaks(t)
	t.Setenv("HANDFAST_REPORT", "1")
	master, ln := mailbox(t, worker.Config{})
	for _, client := range handOff(t, master, fdpass.TypeHandoff, 3) {
		closing(t, client)
	}
	first, second, third := accept(t, ln), accept(t, ln), accept(t, ln)
	if got := next(t, master); got.Type != fdpass.TypeReport || got.Report != (fdpass.Report{}) {
		t.Errorf("before ready: said %v, %+v", got.Type, got.Report)
	}
	first.Close()
	if got := nextReport(t, master); got != (fdpass.Report{Open: 2, Accepted: 3}) {
		t.Errorf("reported %+v", got)
	}
	ln.Close()
	second.Close()
	if got := nextReport(t, master); got != (fdpass.Report{Open: 1, Accepted: 3}) {
		t.Errorf("when it drains: reported %+v", got)
	}
	third.Close()
	var m fdpass.Message
	master.SetReceiveDeadline(time.Now().Add(bound))
	if err := master.Receive(&m); err == nil || m.Type == fdpass.TypeReport {
		t.Errorf("after the last connection: %+v, %v", m, err)
	}
}

// TestReportsAreRare: after the first at most one a second, however much happens.
func TestReportsAreRare(t *testing.T) {
	fdtest.NoLeaks(t)
	t.Setenv("HANDFAST_REPORT", "1")
	master, ln := mailbox(t, worker.Config{})
	fdtest.Check(t, ln.Ready())
	nextReport(t, master)
	start, reports := time.Now(), 0
	for deadline := start.Add(2500 * time.Millisecond); time.Now().Before(deadline); {
		client := handOff(t, master, fdpass.TypeHandoff, 1)[0]
		accept(t, ln).Close()
		client.Close()
		var m fdpass.Message
		master.SetReceiveDeadline(time.Now().Add(time.Millisecond))
		if err := master.Receive(&m); err == nil && m.Type == fdpass.TypeReport {
			reports++
		}
	}
	if most := int(time.Since(start) / time.Second); reports < 1 || reports > most {
		t.Errorf("%d reports in %v", reports, time.Since(start))
	}
}

// TestNoReports: a master that does not ask for them would take them for malformed.
func TestNoReports(t *testing.T) {
	fdtest.NoLeaks(t)
	t.Setenv("HANDFAST_REPORT", "")
	master, ln := mailbox(t, worker.Config{})
	client := closing(t, handOff(t, master, fdpass.TypeHandoff, 1)[0])
	conn := accept(t, ln)
	if m := next(t, master); m.Type != fdpass.TypeReady {
		t.Errorf("said %v", m.Type)
	}
	master.SetReceiveDeadline(time.Now().Add(1500 * time.Millisecond))
	var m fdpass.Message
	if err := master.Receive(&m); err == nil {
		t.Errorf("said %+v", m)
	}
	conn.Close()
	client.Close()
}

// TestReportsFullMailbox: a master that does not listen costs the worker nothing.
func TestReportsFullMailbox(t *testing.T) {
	fdtest.NoLeaks(t)
	t.Setenv("HANDFAST_REPORT", "1")
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	closing(t, master)
	other, err := fdpass.NewConn(os.NewFile(uintptr(fdtest.Duplicate(t, file)), "another end"))
	fdtest.Check(t, err)
	closing(t, other)
	for err == nil {
		err = other.TrySendReport(fdpass.Report{})
	}
	if !errors.Is(err, fdpass.ErrFull) {
		t.Fatal(err)
	}
	ln, err := worker.Config{Mailbox: file, ManualReady: true}.Listen()
	fdtest.Check(t, err)
	closing(t, ln)
	client := closing(t, handOff(t, master, fdpass.TypeHandoff, 1)[0])
	accept(t, ln)
	time.Sleep(1100 * time.Millisecond) // the first report finds it full
	for {
		if got := nextReport(t, master); got != (fdpass.Report{}) {
			if got != (fdpass.Report{Open: 1, Accepted: 1}) {
				t.Errorf("reported %+v", got)
			}
			break
		}
	}
	client.Close()
}

// TestReportsSoon: a worker that may have so many connections and no more says at once, before Close
// returns, when an eighth of them were closed, and of fewer soon.
func TestReportsSoon(t *testing.T) {
	fdtest.NoLeaks(t)
	t.Setenv("HANDFAST_REPORT", "1")
	for limit, share := range map[string]int{"1": 1, "15": 1, "16": 2, "80": 10} {
		t.Setenv("HANDFAST_MAX_CONNECTIONS_PER_SLOT", limit)
		master, ln := mailbox(t, worker.Config{})
		for _, client := range handOff(t, master, fdpass.TypeHandoff, 3*share) {
			closing(t, client)
		}
		var open []*worker.Conn
		for range 3 * share {
			open = append(open, accept(t, ln))
		}
		closed := func(r fdpass.Report) int { return int(r.Accepted - r.Open) }
		for _, c := range open[:share] {
			c.Close()
		}
		said := 0
		for said < share && (share > 1 || master.Next() != 0) { // with 1 each is said at once
			if m := next(t, master); m.Type == fdpass.TypeReport {
				said = closed(m.Report)
			}
		}
		if said != share {
			t.Errorf("limit %s: of %d that were closed it said %d", limit, share, said)
		}
		open[share].Close()
		for said != share+1 {
			said = closed(nextReport(t, master))
		}
	}
}

// TestReportsLost: connections whose descriptors did not arrive are accounted for.
func TestReportsLost(t *testing.T) {
	if !inChild(t) {
		return
	}
	t.Setenv("HANDFAST_REPORT", "1")
	t.Setenv("HANDFAST_MAX_CONNECTIONS_PER_SLOT", "8")
	fdtest.Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 700, Max: 1024}))
	master, ln := mailbox(t, worker.Config{})
	handOff(t, master, fdpass.TypeHandoff, 1)
	accept(t, ln) // no sign of a limit that is near
	handOff(t, master, fdpass.TypeHandoff, 1)
	hogs := hogFiles(t)
	if _, err := ln.Accept(); !errors.Is(err, unix.EMFILE) {
		t.Errorf("Accept: %v; want EMFILE", err)
	}
	hogs[0].Close()
	for {
		switch r := nextReport(t, master); {
		case r == (fdpass.Report{Open: 1, Accepted: 2}):
			return
		case r.Accepted > 1:
			t.Fatalf("reported %+v", r)
		}
	}
}
