package mailbox

import (
	"errors"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// limited is open for a worker that may have so many connections, and knows how to report.
func limited(t testing.TB, most int) (*Mailbox, *worker) {
	t.Helper()
	fdtest.NoLeaks(t)
	m, w, _ := openWith(t, nil, Requests{MaxConnections: most})
	w.report(0, 0)
	w.say(fdpass.TypeReady)
	fdtest.Closed(t, "ready", m.Ready())
	return m, w
}

func (w *worker) report(open, accepted uint64) {
	w.t.Helper()
	if err := w.TrySendReport(fdpass.Report{Open: open, Accepted: accepted}); err != nil {
		w.t.Fatal(err)
	}
}

// hand hands off n connections at once, of which the worker is to take so many.
func hand(t testing.TB, m *Mailbox, w *worker, n, want int) {
	t.Helper()
	hs, _ := connect(t, n)
	taken, err := reexectest.Passing(m.Deliver)(hs)
	if taken != want || (taken < n) != (err == fdpass.ErrLimit) {
		t.Fatalf("of %d connections the worker took %d, error %v; want %d", n, taken, err, want)
	}
	fdpass.CloseHandoffs(hs[taken:])
	for taken > 0 {
		got := w.receive()
		taken -= len(got)
		fdpass.CloseHandoffs(got)
	}
}

// TestLimit: a worker is given no more connections than it may have open, also in one batch, and
// others when it has said that some are closed.
func TestLimit(t *testing.T) {
	m, w := limited(t, 100)
	if !slices.Contains(m.Env(os.Getenv), "HANDFAST_MAX_CONNECTIONS_PER_SLOT=100") || m.MaxConnections() != 100 {
		t.Errorf("environment %v, limit %d", m.Env(os.Getenv), m.MaxConnections())
	}
	hand(t, m, w, 70, 70)
	hand(t, m, w, 70, 30)
	hand(t, m, w, 1, 0)
	w.report(100, 100)
	w.report(97, 100) // 3 are closed
	fdtest.Eventually(t, "report", func() bool { r, _ := m.Report(); return r.Open == 97 })
	hand(t, m, w, 10, 3)
	w.report(0, 90) // it has not accepted all yet
	fdtest.Eventually(t, "report", func() bool { r, _ := m.Report(); return r.Accepted == 90 })
	hand(t, m, w, 100, 87)
}

// TestLimitOfMany: it holds when several deliver at the same time.
func TestLimitOfMany(t *testing.T) {
	const most = 200_000
	m, _ := limited(t, most)
	var all sync.WaitGroup
	var sum atomic.Int64
	for i := range 4 {
		all.Go(func() {
			for n := m.charge(i + 1); n > 0; n = m.charge(i + 1) {
				sum.Add(int64(n))
			}
		})
	}
	all.Wait()
	if n := sum.Load(); n != most {
		t.Errorf("%d were admitted, want %d", n, most)
	}
}

// TestLimitFull: what found no room in the mailbox does not count.
func TestLimitFull(t *testing.T) {
	m, w := limited(t, 1000)
	one, _ := connect(t, 1)
	sent := 0
	for ; ; sent++ {
		if _, err := reexectest.Passing(m.Copy)(one); errors.Is(err, fdpass.ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for range 2000 {
		if _, err := reexectest.Passing(m.Copy)(one); !errors.Is(err, fdpass.ErrFull) {
			t.Fatal(err)
		}
	}
	fdpass.CloseHandoffs(one)
	for range sent {
		fdpass.CloseHandoffs(w.receive())
	}
	hand(t, m, w, 64, 64)
}

// TestNoLimit: a worker that has not reported before it was ready is held to nothing, and reports
// that cannot be true harm nobody.
func TestNoLimit(t *testing.T) {
	fdtest.NoLeaks(t)
	m, w, _ := openWith(t, nil, Requests{MaxConnections: 2})
	w.say(fdpass.TypeReady)
	fdtest.Closed(t, "ready", m.Ready())
	w.report(0, 0)
	fdtest.Eventually(t, "report", func() bool { _, ok := m.Report(); return ok })
	if m.MaxConnections() != 0 {
		t.Errorf("limit %d", m.MaxConnections())
	}
	hand(t, m, w, 5, 5)
}

func TestLimitNonsense(t *testing.T) {
	for _, r := range []fdpass.Report{{Open: 5}, {Open: math.MaxUint64, Accepted: 1}, {Accepted: math.MaxUint64}} {
		m, w := limited(t, 3)
		w.report(r.Open, r.Accepted)
		fdtest.Eventually(t, "report", func() bool { got, _ := m.Report(); return got == r })
		hand(t, m, w, 3, 3)
		m.Close()
	}
}
