package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// TestNotHTTP: what does not begin like an HTTP/1 request goes to the slot of its peer
// at once, whatever the header timeout is.
func TestNotHTTP(t *testing.T) {
	t.Parallel()
	const slots = 16
	b := start(t, slots, options{worker: []string{"raw"}, flags: []string{"--behind-proxy", "--header-timeout", "10m"}})
	for i, text := range []string{
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", // TLS: the begin of a ClientHello
		"\x16",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", // HTTP/2 with prior knowledge (RFC 9113, section 3.3)
		"SSH-2.0-OpenSSH_9.2\r\n",
		"*1\r\n$4\r\nPING\r\n",
		"GET /\r\n",
		"\x00",
		"GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.1\r\n folded: line\r\n",
	} {
		if a := b.raw(source(i), text); a.slot != slotOf(source(i), slots) || a.body != text {
			t.Errorf("%q: %+v, want slot %d", text, a, slotOf(source(i), slots))
		}
	}
	// A request that ends before its head does is the worker's to answer.
	conn := b.send(source(3), "GET / HTTP/1.1\r\nHo")
	conn.CloseWrite()
	if text, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(text), fmt.Sprintf("slot=%d ", slotOf(source(3), slots))) {
		t.Errorf("half a head and a FIN: %q, %v", text, err)
	}
}

// TestHeaderBounds: what comes too slowly, is too long, or one too many, is refused with
// an answer that arrives, and is closed when it is not known to be HTTP.
func TestHeaderBounds(t *testing.T) {
	t.Parallel()
	const head = "GET / HTTP/1.1\r\nHost: test\r\nX-Long: "
	t.Run("timeout", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-timeout", "300ms"}})
		files := b.files()
		begin := time.Now()
		slow := b.send(proxyAt, "GET / HTTP/1.1\r\nHo")
		answers := make(chan answer, 1)
		go func() {
			a, err := response(slow)
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
		// Byte by byte it lasts no longer.
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case a := <-answers:
				if took := time.Since(begin); a.status != http.StatusRequestTimeout || took < 300*time.Millisecond {
					t.Errorf("%+v after %v, want 408 after 300ms", a, took)
				}
			case <-tick.C:
				io.WriteString(slow, "x")
				continue
			}
			break
		}
		silent := b.send(proxyAt)
		if text, err := io.ReadAll(silent); len(text) > 0 || isTimeout(err) {
			t.Errorf("a silent client reads %q, %v, want a closed connection", text, err)
		}
		slow.Close()
		silent.Close()
		if !eventually(func() bool { return b.files() <= files }) {
			t.Errorf("%d files are open, at the start %d", b.files(), files)
		}
	})
	t.Run("size", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-limit", "2KiB"}})
		for _, parts := range [][]string{
			{head + strings.Repeat("x", 64<<10)},
			{head, strings.Repeat("x", 64<<10)},
			{head + strings.Repeat("x", 2048-len(head))},
		} {
			conn := b.send(proxyAt, parts...)
			if a, err := response(conn); err != nil || a.status != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%+v, %v, want 431", a, err)
			}
			conn.Close()
		}
		if a := b.ask(proxyAt, head+strings.Repeat("x", 2048-len(head)-len("\r\nConnection: close\r\n\r\n"))+"\r\nConnection: close\r\n\r\n"); a.status != http.StatusOK {
			t.Errorf("2048 bytes: %+v", a)
		}
	})
	t.Run("number", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-timeout", "10m", "--max-parked", "10", "--stop-timeout", "1ms"}})
		files := b.files()
		for range 5 { // half of the room: the rest is for those that wait for their slot
			defer b.send(proxyAt, head).Close()
		}
		if !eventually(func() bool { return b.files() >= files+5 }) {
			t.Fatal("they are not parked")
		}
		if a, err := response(b.send(proxyAt, head)); err != nil || a.status != http.StatusServiceUnavailable {
			t.Errorf("%+v, %v, want 503", a, err)
		}
		if a := b.ask(proxyAt, forwardedFor(proxied(1))); a.status != http.StatusOK {
			t.Errorf("a whole head: %+v", a)
		}
	})
	t.Run("last place", func(t *testing.T) {
		// The only place is its own, and its worker is free.
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--max-parked", "1"}})
		head := forwardedFor(proxied(1))
		if a := b.ask(proxyAt, head[:20], head[20:]); a.status != http.StatusOK {
			t.Errorf("%+v", a)
		}
		// It keeps it when it has to wait for its slot.
		freeze(t, b.worker(0))
		conn := b.send(proxyAt, head[:20], head[20:])
		unix.Kill(b.worker(0), unix.SIGCONT)
		if a, err := response(conn); err != nil || a.status != http.StatusOK {
			t.Errorf("%+v, %v", a, err)
		}
	})
	t.Run("not HTTP", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--proxy-protocol", "--max-parked", "2", "--header-timeout", "10m", "--stop-timeout", "1ms"}})
		defer b.park(proxyAt, "PROXY TCP4 ").Close()
		if text, err := io.ReadAll(b.send(proxyAt, "\x16\x03\x01")); len(text) > 0 || isTimeout(err) {
			t.Errorf("%q, %v, want a closed connection", text, err)
		}
		if l := b.await("connection refused"); !strings.Contains(l.text, "no PROXY protocol header") {
			t.Errorf("the log says %s", l.text)
		}
	})
	t.Run("close", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-timeout", "100ms", "--refuse", "close"}})
		if text, err := io.ReadAll(b.send(proxyAt, head)); len(text) > 0 || isTimeout(err) {
			t.Errorf("%q, %v, want a closed connection", text, err)
		}
	})
}

// TestStopWithHalfAHead: a stop waits for the rest of a head, as for whatever is parked.
func TestStopWithHalfAHead(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{flags: []string{"--behind-proxy", "--header-timeout", "2s"}})
	head := forwardedFor(proxied(1))
	first, second := b.park(proxyAt, head[:20]), b.park(proxyAt, head[:20])
	files := b.files()
	b.signal(unix.SIGTERM)
	b.await("stopping")
	if !eventually(func() bool { return b.files() < files }) { // the listener is closed
		t.Fatal("it still listens")
	}
	io.WriteString(first, head[20:])
	if a, err := response(first); err != nil || a.slot != slotOf(proxied(1), 2) {
		t.Errorf("%+v, %v, want to be served", a, err)
	}
	if a, err := response(second); err != nil || a.status != http.StatusRequestTimeout {
		t.Errorf("%+v, %v, want 408", a, err)
	}
	second.Close() // or it keeps the balancer
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}

// TestSlowClients: 5,000 clients that send a byte a second leave the others' latency as
// it was, and cost the master less than 64 MiB. What the senders themselves take from
// the machine is there in both: to compare with, they send elsewhere.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	const (
		slow   = 5000
		most   = 64 << 10 // KiB
		rounds = 3        // the best counts, and the first that is good enough
		slack  = 5 * time.Millisecond
	)
	program := trial.Build(t, "github.com/handfast/handfast/cmd/handfast") // without the race detector and its memory
	b := start(t, 2, options{
		flags:  []string{"--behind-proxy", "--header-timeout", "10m", "--stop-timeout", "1ms"},
		change: func(cmd *exec.Cmd) { cmd.Path = program },
	})
	b.ask(proxyAt, forwardedFor(proxied(1)))
	memory := residentKiB(t, b.cmd.Process.Pid)
	elsewhere := sink(t)
	var here, there []net.Conn
	for i := range slow {
		conn := b.send(source(i%1000), "G")
		conn.SetDeadline(time.Time{})
		here = append(here, conn)
		other, err := net.Dial("tcp", elsewhere)
		if err != nil {
			t.Fatal(err)
		}
		there = append(there, other)
		defer reset(conn)
		defer other.Close()
	}
	if !eventually(func() bool { return b.status().Totals.Parked == slow }) {
		t.Fatalf("%d of %d are parked", b.status().Totals.Parked, slow)
	}
	best := func(was, is time.Duration) time.Duration {
		if was == 0 || is < was {
			return is
		}
		return was
	}
	var without, with time.Duration
	sent := 0
	for round := 0; round < rounds && (sent < slow || with > 2*without+slack); round++ {
		p99, _ := b.latencyBesides(there)
		without = best(without, p99)
		p99, n := b.latencyBesides(here)
		with = best(with, p99)
		sent += n
	}
	grown := residentKiB(t, b.cmd.Process.Pid) - memory
	t.Logf("%d slow clients sent %d bytes; p99 of others %v, without them %v; the master has grown by %d KiB", slow, sent, with, without, grown)
	if sent < slow {
		t.Errorf("only %d bytes were sent", sent)
	}
	if grown > most {
		t.Errorf("they cost the master %d KiB, want at most %d", grown, most)
	}
	if with > 2*without+slack {
		t.Errorf("p99 of others is %v, without them %v", with, without)
	}
}

// latencyBesides sends one byte a second on each of conns for a while, and returns the
// 99th percentile of requests meanwhile, and how many bytes it has sent.
func (b *instance) latencyBesides(conns []net.Conn) (p99 time.Duration, sent int) {
	const lasting = 1500 * time.Millisecond
	begin := time.Now()
	stop := make(chan struct{})
	sending := make(chan int)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		n := 0
		for {
			select {
			case <-tick.C:
				for due := int(time.Since(begin).Seconds() * float64(len(conns))); n < due; n++ {
					io.WriteString(conns[n%len(conns)], "x")
				}
			case <-stop:
				sending <- n
				return
			}
		}
	}()
	var took []time.Duration
	for time.Since(begin) < lasting {
		start := time.Now()
		b.ask(proxyAt, forwardedFor(proxied(len(took)%100)))
		took = append(took, time.Since(start))
	}
	close(stop)
	slices.Sort(took)
	return took[len(took)*99/100], <-sending
}

// sink reads and forgets until the test ends.
func sink(t *testing.T) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(io.Discard, conn)
			}()
		}
	}()
	return ln.Addr().String()
}

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// residentKiB returns the memory that a process has in use.
func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	m := residentLine.FindSubmatch(status)
	if err != nil || m == nil {
		t.Fatal(err, string(status))
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}
