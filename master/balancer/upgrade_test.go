package balancer

import (
	"fmt"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/reexec"
)

// stillTime is how long nothing may move while reexec.Lock is held for writing. A test that runs where
// something else comes first can only succeed wrongly.
const stillTime = 100 * time.Millisecond

// TestNothingMoves: while reexec.Lock is held, no connection is accepted, delivered, or taken back
// from a worker, and all of that happens afterwards.
func TestNothingMoves(t *testing.T) {
	table := NewTable(2)
	b, dial, stop := serveTest(t, table, func(c *Config) {
		behindProxy(c)
		c.Strategy = bySource{}
		c.RetryDelay = time.Millisecond
		c.MaxRetries = 1 << 20
	})
	defer stop()
	head := "GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.%d\r\n\r\n"
	parked, half := dial(2), dial(1)
	fmt.Fprintf(parked, head, 2)
	fmt.Fprint(half, head[:1]) // else the kernel keeps it for a second (deferAccept)
	if !fdtest.Poll(func() bool { return b.Stats().Parked == 2 }) {
		t.Fatalf("%+v", b.Stats())
	}
	returned := make(chan []fdpass.Handoff, 1)
	m, theirs := mailboxOf(t, func(hs []fdpass.Handoff) { returned <- append([]fdpass.Handoff(nil), hs...) })
	m.Drain() // so that it may return something

	reexec.Lock.Lock()
	before := b.Stats()
	third := dial(3)
	fmt.Fprint(third, head[:1])
	table.Fill(0, busyWorker("first"))
	table.Fill(1, busyWorker("second"))
	fmt.Fprintf(half, head[1:], 1)
	ours, far := fdtest.TCPPair(t)
	defer ours.Close()
	defer far.Close()
	given := fdpass.Handoff{FD: fdtest.Duplicate(t, ours)}
	if err := theirs.TrySend(fdpass.TypeReturn, []fdpass.Handoff{given}); err != nil {
		t.Error(err)
	}
	fdpass.CloseHandoffs([]fdpass.Handoff{given})
	time.Sleep(stillTime)
	if after := b.Stats(); after != before || len(returned) > 0 {
		t.Errorf("something moved: %+v, before %+v; %d returned", after, before, len(returned))
	}
	reexec.Lock.Unlock()

	if !fdtest.Poll(func() bool { s := b.Stats(); return s.HandedOff == 2 && s.Accepted == 3 }) {
		t.Errorf("afterwards: %+v", b.Stats())
	}
	fdpass.CloseHandoffs(<-returned)
	third.Close()
}

// mailboxOf returns a mailbox, and its worker's end.
func mailboxOf(t *testing.T, readmit func([]fdpass.Handoff)) (*mailbox.Mailbox, *fdpass.Conn) {
	t.Helper()
	m, err := mailbox.Open(nil, mailbox.Requests{}, readmit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	theirs, err := fdpass.NewConn(m.Files()[0])
	if err != nil {
		t.Fatal(err)
	}
	return m, theirs
}
