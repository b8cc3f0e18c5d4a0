package balancer

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/clientip"
)

var sessionA = clientip.NameSession([]byte("a"))

// tlsHello is what no HTTP request begins with.
const tlsHello = "\x16\x03\x01"

func TestSessions(t *testing.T) {
	var s Sessions
	a, b := busyWorker("a"), busyWorker("b")
	if s.Any() || s.Owner(sessionA) != nil {
		t.Error("sessions at the start")
	}
	s.Claim(sessionA, a, 0)
	s.Claim(sessionA, b, 0) // which is a's
	s.Release(sessionA, b)
	if s.Owner(sessionA) != a || s.Owner(0) != nil || !s.Any() {
		t.Error("a does not keep its session")
	}
	s.Release(sessionA, a)
	if s.Owner(sessionA) != nil || !s.Any() {
		t.Error("a still keeps it")
	}
}

// TestSessionOwner: a request goes to the worker that keeps its session, from whatever
// address, and in one piece or not; all others go by their address.
func TestSessionOwner(t *testing.T) {
	table := NewTable(2)
	table.Fill(0, busyWorker("zero"))
	table.Fill(1, busyWorker("one"))
	_, dial, _ := serveTest(t, table, func(c *Config) { c.Clients.HeaderTimeout = testPatience })
	conn := dial(1)
	reads(t, conn, "one") // before there is a session nobody looks
	owner := busyWorker("owner")
	table.Claim(sessionA, owner, 0)
	conn = dial(2) // the last one that is not looked at, perhaps
	io.WriteString(conn, tlsHello)
	begins(t, conn, "zero")
	for _, cut := range []int{0, 1, 10} {
		conn := dial(2)
		const head = "GET /?sid=a HTTP/1.1\r\nHost: a\r\n\r\n"
		io.WriteString(conn, head[:cut])
		io.WriteString(conn, head[cut:])
		begins(t, conn, "owner")
	}
	for _, head := range []string{"GET / HTTP/1.1\r\n\r\n", "GET /?sid=b HTTP/1.1\r\n\r\n", tlsHello} {
		conn := dial(3)
		io.WriteString(conn, head)
		begins(t, conn, "one")
	}
	table.Release(sessionA, owner)
	conn = dial(2)
	io.WriteString(conn, "GET /?sid=a HTTP/1.1\r\n\r\n")
	begins(t, conn, "zero")
}

// closedWorker takes nothing any more.
type closedWorker struct{}

func (closedWorker) Deliver([]fdpass.Handoff) (int, error) { return 0, fdpass.ErrClosed }

// TestSessionOwnerGone: when the owner has just gone, the request goes by its address; when
// it is behind, the request waits for it.
func TestSessionOwnerGone(t *testing.T) {
	table := NewTable(1)
	table.Fill(0, busyWorker("slot"))
	b, dial, _ := serveTest(t, table, func(c *Config) { c.RetryDelay = time.Millisecond })
	table.Claim(sessionA, closedWorker{}, 0)
	conn := dial(1)
	fmt.Fprint(conn, "GET /?sid=a HTTP/1.1\r\n\r\n")
	begins(t, conn, "slot")

	full := &fakeWorker{name: "owner"}
	sessionB := clientip.NameSession([]byte("b"))
	table.Claim(sessionB, full, 0)
	conn = dial(1)
	fmt.Fprint(conn, "GET /?sid=b HTTP/1.1\r\n\r\n")
	if !fdtest.Poll(func() bool { return b.Stats().Parked == 1 }) {
		t.Error("it does not wait for its owner")
	}
	full.mu.Lock()
	full.room = 1
	full.mu.Unlock()
	begins(t, conn, "owner")
}

// TestSilentCrowd: clients that say nothing use up no more than the waitlist, and go by their addresses: at once if
// there is no room, or else when the header timeout is over. Nobody is refused for a session that it does not have.
func TestSilentCrowd(t *testing.T) {
	table := NewTable(1)
	table.Fill(0, busyWorker("slot"))
	b, dial, _ := serveTest(t, table, func(c *Config) { c.MaxParked = 4; c.Clients.HeaderTimeout = 100 * time.Millisecond })
	table.Claim(sessionA, busyWorker("owner"), 0)
	for range 12 {
		dial(1)
	}
	var conns []net.Conn
	for i := range 12 {
		conns = append(conns, dial(byte(2+i)))
	}
	for _, conn := range conns {
		begins(t, conn, "slot")
	}
	if s := b.Stats(); s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// lockedWorker takes connections under a lock.
type lockedWorker struct{ sync.Mutex }

func (w *lockedWorker) Deliver(conns []fdpass.Handoff) (int, error) {
	w.Lock()
	defer w.Unlock()
	fdpass.CloseHandoffs(conns)
	return len(conns), nil
}

// TestReadmitUnderLock: a worker's link may give connections back under the lock under which it
// takes them, also when nobody may wait for a request line.
func TestReadmitUnderLock(t *testing.T) {
	table := NewTable(1)
	w := new(lockedWorker)
	table.Fill(0, w)
	cfg := DefaultConfig()
	cfg.MaxParked = 0
	b, err := New(cfg, table)
	if err != nil {
		t.Fatal(err)
	}
	table.Claim(sessionA, w, 0)
	ours, theirs := fdtest.TCPPair(t)
	defer ours.Close()
	defer theirs.Close()
	returned := make(chan struct{})
	w.Lock()
	go func() {
		readmit(b, []fdpass.Handoff{{FD: fdtest.Duplicate(t, theirs), Client: netip.MustParseAddrPort("127.0.0.1:1")}})
		close(returned)
	}()
	select {
	case <-returned:
	case <-time.After(testPatience):
		t.Error("Readmit waits for the worker")
	}
	w.Unlock()
	ours.Close()
	b.Shutdown(t.Context())
}
