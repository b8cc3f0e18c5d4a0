package balancer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
)

const proxiedHead = "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.2, 10.0.0.1\r\n\r\n"

func behindProxy(c *Config) { c.Clients.Rules.Header = "X-Forwarded-For" }

// begins is reads for a worker that closes without having read the request, which makes
// the kernel send a reset behind its answer.
func begins(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("client %v reads %q, %v, want %q", conn.LocalAddr(), got, err, want)
	}
}

// TestIdentifyAllocatesNothing: a connection whose head is there stays on the straight
// line, also behind a proxy.
func TestIdentifyAllocatesNothing(t *testing.T) {
	cfg := DefaultConfig()
	behindProxy(&cfg)
	b, err := New(cfg, NewTable(1))
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := fdtest.TCPPair(t)
	defer ours.Close()
	defer theirs.Close()
	if _, err := ours.Write([]byte(proxiedHead)); err != nil {
		t.Fatal(err)
	}
	fd := fdtest.Duplicate(t, theirs)
	batch := []connection{{Handoff: fdpass.Handoff{FD: fd, Client: netip.MustParseAddrPort("127.0.0.1:1")}}}
	buffer := b.clients.Buffer()
	var known []connection
	if n := testing.AllocsPerRun(100, func() { known = b.identify(batch, buffer) }); n != 0 {
		t.Errorf("identifying allocates %v times", n)
	}
	if len(known) != 1 || known[0].client.Addr != netip.MustParseAddr("203.0.113.2") {
		t.Errorf("%+v", known)
	}
	reexec.Lock.RLock()
	b.refuser.refuse(known[0], 0, errEmpty)
	reexec.Lock.RUnlock()
	ours.Close()
	b.Shutdown(t.Context())
}

// TestDeferredAtTheEnd: a client that is connected, and sends its first bytes when the
// balancer is stopping already, is served.
func TestDeferredAtTheEnd(t *testing.T) {
	for try := 1; ; try++ {
		listening := make(chan time.Time, 1)
		cfg := DefaultConfig()
		behindProxy(&cfg)
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: writerFunc(func(p []byte) (int, error) {
			if bytes.Contains(p, []byte("listening")) {
				listening <- time.Now()
			}
			return len(p), nil
		})})
		table := NewTable(1)
		table.Fill(0, busyWorker("w"))
		b, err := New(cfg, table)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := Listen(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ln.(*net.TCPListener).SyscallConn()
		if err == nil {
			err = deferAccept(raw, true)
		}
		if err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		client.SetDeadline(time.Now().Add(testPatience))
		stopped, stop := context.WithCancel(t.Context())
		stop()
		served := make(chan error, 1)
		go func() { served <- b.Serve(stopped, ln) }()
		begin := <-listening
		client.Write([]byte(proxiedHead))
		if time.Since(begin) > LastGrace/2 && try < 10 {
			<-served
			continue // this test was too slow
		}
		begins(t, client, "w")
		if err := <-served; err != nil {
			t.Error(err)
		}
		return
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestDropSYNs: nobody connects while first packets are dropped, and nobody is refused.
func TestDropSYNs(t *testing.T) {
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := dropSYNs(raw); err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", ln.Addr().String(), 100*time.Millisecond)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("connected: %v, %v, want a timeout", conn != nil, err)
	}
	if err := passSYNs(raw); err != nil {
		t.Fatal(err)
	}
	if conn, err = net.DialTimeout("tcp", ln.Addr().String(), testPatience); err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestHalfAHeadAtTheEnd: when nothing may wait any longer, a client that has sent half a
// head is told that the server stops.
func TestHalfAHeadAtTheEnd(t *testing.T) {
	b, dial, stop := serveTest(t, NewTable(1), behindProxy)
	client := dial(1)
	client.Write([]byte(proxiedHead[:20]))
	if !fdtest.Poll(func() bool { return b.Stats().Parked == 1 }) {
		t.Fatalf("%+v", b.Stats())
	}
	go stop()
	reads(t, client, "HTTP/1.1 503 ")
}

// TestReadmitIdentifies: what comes back from a worker is looked at again.
func TestReadmitIdentifies(t *testing.T) {
	table := NewTable(4)
	workers := []*fakeWorker{busyWorker("0"), busyWorker("1"), busyWorker("2"), busyWorker("3")}
	for slot, w := range workers {
		table.Fill(slot, w)
	}
	b, _, _ := serveTest(t, table, behindProxy)
	ours, theirs := fdtest.TCPPair(t)
	defer ours.Close()
	peer := netip.MustParseAddrPort("127.0.0.1:1")
	if _, err := ours.Write([]byte(proxiedHead)); err != nil {
		t.Fatal(err)
	}
	readmit(b, []fdpass.Handoff{{FD: fdtest.Duplicate(t, theirs), Client: peer}})
	theirs.Close()
	begins(t, ours, "2") // the last byte of 203.0.113.2

	// Half a head waits for the rest, and a client that is gone is forgotten.
	ours, theirs = fdtest.TCPPair(t)
	defer ours.Close()
	ours.Write([]byte(proxiedHead[:20]))
	gone, theirGone := fdtest.TCPPair(t)
	gone.SetLinger(0)
	gone.Close()
	readmit(b, []fdpass.Handoff{{FD: fdtest.Duplicate(t, theirs), Client: peer}, {FD: fdtest.Duplicate(t, theirGone), Client: peer}})
	theirs.Close()
	theirGone.Close()
	if !fdtest.Poll(func() bool { s := b.Stats(); return s.Parked == 1 && s.Gone == 1 }) {
		t.Fatalf("%+v", b.Stats())
	}
	ours.Write([]byte(proxiedHead[20:]))
	begins(t, ours, "2")
	b.Shutdown(context.Background())
}

// TestRetryAfter: a client that is refused for a moment is told when to come again.
func TestRetryAfter(t *testing.T) {
	const header = "\r\nRetry-After: 1\r\n"
	for why, want := range map[error]bool{errCrowded: true, errStopping: true, errEmpty: false, clientip.ErrPartial: false} {
		if got := string(answerTo(why)); strings.Contains(got, header) != want {
			t.Errorf("%v: %q", why, got)
		}
	}
}

// TestStrangersBesideProxies: peers that are no trusted proxy and say too little fill their share of the waitlist;
// a trusted proxy whose header comes in two pieces has places of its own.
//
// Row A10: with half of the room full of strangers, all proxies were reset.
func TestStrangersBesideProxies(t *testing.T) {
	for name, v := range map[string]struct {
		change       func(*Config)
		sessions     bool
		first, later string
	}{
		"PROXY protocol": {func(c *Config) { c.Clients.ProxyProtocol = true }, false, "PROXY TCP4 203.0.113", ".9 127.0.0.1 1 2\r\n"},
		// Strangers wait, too, where a request may name a session.
		"header and sessions": {behindProxy, true, "GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113", ".9\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			const proxy, proxies, strangers = 200, 20, 60
			table := NewTable(1)
			table.Fill(0, busyWorker("served"))
			b, dial, _ := serveTest(t, table, func(c *Config) {
				v.change(c)
				c.MaxParked = 4 * proxies
				c.Clients.HeaderTimeout = testPatience
				c.Clients.Rules.Trusted, _ = forwarded.ParseTrust("127.0.0.200")
			})
			if v.sessions {
				table.Claim(sessionA, busyWorker("owner"), 0)
			}
			for i := range strangers {
				io.WriteString(dial(byte(1+i)), "P")
			}
			if !fdtest.Poll(func() bool { return b.Stats().Accepted == strangers && b.waitlist.len() == proxies }) {
				t.Fatalf("%+v, %d wait, want %d", b.Stats(), b.waitlist.len(), proxies)
			}
			var conns []net.Conn
			for range proxies {
				conn := dial(proxy)
				io.WriteString(conn, v.first)
				conns = append(conns, conn)
			}
			if !fdtest.Poll(func() bool { return b.waitlist.len() == 2*proxies }) {
				t.Errorf("%+v, %d wait, want %d", b.Stats(), b.waitlist.len(), 2*proxies)
			}
			for _, conn := range conns {
				io.WriteString(conn, v.later)
				begins(t, conn, "served")
			}
		})
	}
}
