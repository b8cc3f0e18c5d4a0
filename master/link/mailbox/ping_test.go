package mailbox

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// watched is open for a worker that answers pings.
func watched(t testing.TB) (*Mailbox, *worker) {
	t.Helper()
	fdtest.NoLeaks(t)
	m, w, _ := openWith(t, nil, Requests{Pings: true})
	w.say(fdpass.TypePong)
	w.say(fdpass.TypeReady)
	fdtest.Closed(t, "ready", m.Ready())
	return m, w
}

// pinged wants a ping next in the mailbox, or nothing.
func (w *worker) pinged(want bool) {
	w.t.Helper()
	if got := w.Next() == fdpass.TypePing; got != want {
		w.t.Fatalf("pinged: %v, want %v", got, want)
	}
	var m fdpass.Message
	if want {
		w.Receive(&m)
	}
}

func ping(t testing.TB, m *Mailbox, want bool) {
	t.Helper()
	if got := m.Ping(); got != want {
		t.Fatalf("alive: %v, want %v", got, want)
	}
}

// TestPing: one ping at a time, and a sign of the worker is seen once.
func TestPing(t *testing.T) {
	m, w := watched(t)
	if !m.Answers() || !slices.Contains(m.Env(os.Getenv), "HANDFAST_PING=1") {
		t.Errorf("answers: %v, environment %v", m.Answers(), m.Env(os.Getenv))
	}
	ping(t, m, true) // it is just ready
	ping(t, m, false)
	w.pinged(true)
	ping(t, m, false)
	w.pinged(false) // it has the first one
	w.say(fdpass.TypePong)
	fdtest.Eventually(t, "pong", func() bool { return !m.owes.Load() })
	ping(t, m, true)
	w.pinged(true)
	ping(t, m, false)
	w.say(fdpass.TypePong)
	w.say(fdpass.TypePong) // nobody has asked
	fdtest.Eventually(t, "pong", func() bool { return !m.owes.Load() })
	ping(t, m, true)
}

// TestPingReports: a worker that accepts is there, although the ping lies behind many connections; one that
// closes only may not be.
func TestPingReports(t *testing.T) {
	m, w := watched(t)
	ping(t, m, true)
	for _, c := range []struct {
		report fdpass.Report
		alive  bool
	}{
		{fdpass.Report{Open: 1, Accepted: 1}, true},
		{fdpass.Report{Open: 0, Accepted: 1}, false},
		{fdpass.Report{Open: 0, Accepted: 5}, true},
		{fdpass.Report{Open: 5, Accepted: 5}, false},
	} {
		w.report(c.report.Open, c.report.Accepted)
		fdtest.Eventually(t, "report", func() bool { r, _ := m.Report(); return r == c.report })
		ping(t, m, c.alive)
	}
}

// TestPingFull: a worker that is given more than it can take in time is there as long as it takes any.
func TestPingFull(t *testing.T) {
	m, w := watched(t)
	one, _ := connect(t, 1)
	defer fdpass.CloseHandoffs(one)
	fill := func() {
		t.Helper()
		for {
			if _, err := reexectest.Passing(m.Copy)(one); errors.Is(err, fdpass.ErrFull) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	ping(t, m, true)
	ping(t, m, false)
	for range 3 {
		fdpass.CloseHandoffs(w.receive())
		fill()
		ping(t, m, true)
		ping(t, m, false)
	}
	for w.Next() == fdpass.TypeHandoff {
		fdpass.CloseHandoffs(w.receive())
	}
	w.pinged(false)
	ping(t, m, false)
	w.pinged(true)
}

// TestNoPing: a worker that has not answered before it was ready is not asked, nor is anybody unless it is wished.
func TestNoPing(t *testing.T) {
	for name, late := range map[string]bool{"late": true, "not wished": false} {
		t.Run(name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			m, w, _ := openWith(t, nil, Requests{Pings: late})
			if !late {
				w.say(fdpass.TypePong)
			}
			w.say(fdpass.TypeReady)
			fdtest.Closed(t, "ready", m.Ready())
			w.say(fdpass.TypePong)
			for range 3 {
				ping(t, m, true)
				w.pinged(false)
			}
			if m.Answers() {
				t.Error("answers")
			}
		})
	}
}

// TestPingOfWorker: a worker that pings is malformed.
func TestPingOfWorker(t *testing.T) {
	m, w := watched(t)
	w.say(fdpass.TypePing)
	fdtest.Closed(t, "left", m.Left())
	if err := m.Err(); !errors.Is(err, fdpass.ErrMalformed) || !strings.Contains(err.Error(), "ping") {
		t.Error(err)
	}
}

// TestLastNamed: further requests have named the worker when it reports more of them, and not when it reports something else.
func TestLastNamed(t *testing.T) {
	m, w := watched(t)
	report := func(r fdpass.Report) time.Time {
		t.Helper()
		fdtest.Check(t, w.TrySendReport(r))
		fdtest.Eventually(t, "report", func() bool { got, _ := m.Report(); return got == r })
		return m.LastNamed()
	}
	if at := report(fdpass.Report{Open: 1, Accepted: 1}); !at.IsZero() {
		t.Errorf("named %v", at)
	}
	before := time.Now()
	named := report(fdpass.Report{Open: 1, Accepted: 1, Named: 1})
	if named.Before(before) || named.After(time.Now()) {
		t.Errorf("named %v, not since %v", named, before)
	}
	if at := report(fdpass.Report{Open: 2, Accepted: 2, Named: 1}); !at.Equal(named) {
		t.Errorf("named %v, want %v", at, named)
	}
	if at := report(fdpass.Report{Open: 2, Accepted: 2}); !at.After(named) { // it has counted over its end
		t.Errorf("named %v", at)
	}
}
