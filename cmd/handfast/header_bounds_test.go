package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNotHTTP: what does not begin like an HTTP/1 request goes to the slot of its peer
// at once, whatever the header timeout is.
func TestNotHTTP(t *testing.T) {
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
		if text, err := io.ReadAll(b.send(proxyAt)); len(text) > 0 || isTimeout(err) {
			t.Errorf("a silent client reads %q, %v, want a closed connection", text, err)
		}
		slow.Close()
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
	t.Run("close", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-timeout", "100ms", "--refuse", "close"}})
		if text, err := io.ReadAll(b.send(proxyAt, head)); len(text) > 0 || isTimeout(err) {
			t.Errorf("%q, %v, want a closed connection", text, err)
		}
	})
}

// TestStopWithHalfAHead: a stop waits for the rest of a head, as for whatever is parked.
func TestStopWithHalfAHead(t *testing.T) {
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
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}

// TestSlowClients: 5,000 clients that send a byte a second leave the others' latency as
// it was, and cost the master less than 64 MiB.
func TestSlowClients(t *testing.T) {
	const (
		slow   = 5000
		most   = 64 << 10 // KiB
		rounds = 5
	)
	program := filepath.Join(t.TempDir(), "handfast") // without the race detector and its memory
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	b := start(t, 2, options{
		flags:  []string{"--behind-proxy", "--header-timeout", "10m", "--stop-timeout", "1ms"},
		change: func(cmd *exec.Cmd) { cmd.Path = program },
	})
	latencies := func() (took []time.Duration) {
		for i := range 400 {
			begin := time.Now()
			b.ask(proxyAt, forwardedFor(proxied(i%100)))
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		return took
	}
	before, memory := latencies(), residentKiB(t, b.cmd.Process.Pid)
	head := forwardedFor(proxied(1))
	files := b.files()
	var clients []*net.TCPConn
	for i := range slow {
		conn := b.send(source(i%1000), head[:1])
		defer reset(conn)
		conn.SetDeadline(time.Time{})
		clients = append(clients, conn)
	}
	if !eventually(func() bool { return b.files() >= files+slow }) {
		t.Fatalf("%d of %d are parked", b.files()-files, slow)
	}
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan int, 1)
	go func() { // one byte a second for each
		tick := time.NewTicker(time.Second / slow)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-tick.C:
				at := 1 + n/slow
				io.WriteString(clients[n%slow], head[at:at+1])
			case <-ctx.Done():
				sent <- n
				return
			}
		}
	}()
	var during []time.Duration
	for range rounds {
		during = append(during, latencies()...)
	}
	grown := residentKiB(t, b.cmd.Process.Pid) - memory
	cancel()
	slices.Sort(during)
	p99Before, p99 := before[len(before)*99/100], during[len(during)*99/100]
	t.Logf("%d slow clients sent %d bytes; p99 of others %v, before %v; the master has grown by %d KiB", slow, <-sent, p99, p99Before, grown)
	if grown > most {
		t.Errorf("they cost the master %d KiB, want at most %d", grown, most)
	}
	if p99 > 2*p99Before+20*time.Millisecond {
		t.Errorf("p99 of others was %v, is %v", p99Before, p99)
	}
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
