package worker_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
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
	noLeaks(t)
	t.Setenv("HANDFAST_REPORT", "1")
	master, ln := mailbox(t, worker.Config{})
	for _, client := range handOff(t, master, fdpass.TypeHandoff, 3) {
		closing(t, client)
	}
	first, second, third := accept(t, ln), accept(t, ln), accept(t, ln)
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

// TestReportsAreRare: at most one a second, however much happens.
func TestReportsAreRare(t *testing.T) {
	noLeaks(t)
	t.Setenv("HANDFAST_REPORT", "1")
	master, ln := mailbox(t, worker.Config{})
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
	noLeaks(t)
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
	noLeaks(t)
	t.Setenv("HANDFAST_REPORT", "1")
	master, file, err := fdpass.Pair()
	check(t, err)
	closing(t, master)
	other, err := fdpass.NewConn(os.NewFile(uintptr(dup(t, file)), "another end"))
	check(t, err)
	closing(t, other)
	for err == nil {
		err = other.TrySendReport(fdpass.Report{})
	}
	if !errors.Is(err, fdpass.ErrFull) {
		t.Fatal(err)
	}
	ln, err := worker.Config{Mailbox: file, ManualReady: true}.Listen()
	check(t, err)
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
