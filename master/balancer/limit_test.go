package balancer

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// limitedWorker has as many connections as it may after room more.
type limitedWorker struct{ *fakeWorker }

func (w limitedWorker) Deliver(conns []fdpass.Handoff) (n int, err error) {
	if n, err = w.fakeWorker.Deliver(conns); err != nil {
		err = fdpass.ErrLimit
	}
	return n, err
}

// TestLimit: a client that comes to a worker that has as many connections as it may is soon refused with
// 503, whatever the patience, and no other slot takes it.
func TestLimit(t *testing.T) {
	for name, when := range map[string]WhenDown{"wait": Wait, "next": Next} {
		t.Run(name, func(t *testing.T) {
			table := NewTable(2)
			table.Fill(1, busyWorker("one"))
			outcomes := make(chan Outcome, 100)
			b, dial, _ := serveTest(t, table, func(c *Config) {
				c.RetryDelay, c.MaxRetries, c.WhenDown = time.Hour, 10, when
				c.OnOutcome = func(o Outcome) { outcomes <- o }
			})
			parked := dial(2)
			if !fdtest.Poll(func() bool { return b.Stats().Parked == 1 }) {
				t.Fatalf("%+v", b.Stats())
			}
			refused := func(client net.Conn) {
				t.Helper()
				answer, _ := io.ReadAll(client)
				client.Close()
				if !strings.HasPrefix(string(answer), "HTTP/1.1 503 ") || !strings.Contains(string(answer), "\r\nRetry-After: 1\r\n") {
					t.Errorf("answer %q", answer)
				}
				if o := <-outcomes; o.Reason() != "too_many_open" || o.Slot != 0 || o.Parked < reportTime {
					t.Errorf("%+v", o)
				}
			}
			table.Fill(0, limitedWorker{&fakeWorker{name: "zero"}})
			refused(parked)
			table.Fill(0, limitedWorker{&fakeWorker{name: "zero", room: 2}})
			reads(t, dial(2), "zero")
			reads(t, dial(4), "zero")
			refused(dial(2))
			reads(t, dial(3), "one")
			if n := table.counts(0).refused.Load(); n != 2 {
				t.Errorf("%d refused", n)
			}
		})
	}
}

// reportingWorker has no room until it was asked so often.
type reportingWorker struct {
	*fakeWorker
	asked atomic.Int32
}

func (w *reportingWorker) Deliver(conns []fdpass.Handoff) (int, error) {
	if w.asked.Add(1) < 3 {
		return 0, fdpass.ErrLimit
	}
	return w.fakeWorker.Deliver(conns)
}

// TestLimitReported: a client that finds no room waits for as long as the worker's report may be late: a client
// that comes back as soon as its connection was closed is not refused.
func TestLimitReported(t *testing.T) {
	table := NewTable(1)
	table.Fill(0, &reportingWorker{fakeWorker: busyWorker("w")})
	_, dial, _ := serveTest(t, table, func(c *Config) { c.RetryDelay, c.MaxRetries = time.Hour, 1 })
	reads(t, dial(1), "w")
}
