package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestRefusal: the 502 is complete and well formed, and the client receives it
// although it has sent more than anybody read.
func TestRefusal(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{worker: []string{"mute"}, notReady: true, flags: []string{"--retry-delay", "10ms", "--max-retries", "3"}})
	for name, body := range map[string]int{"no body": 0, "100 KB unread": 100 << 10} {
		conn, err := b.dial(source(0))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", body, strings.Repeat("x", body))
		got, err := io.ReadAll(conn)
		// The server has closed its side, but no reset may follow: on its way it could
		// make a client drop the answer (RFC 9112, section 9.6).
		for begin := time.Now(); time.Since(begin) < 200*time.Millisecond; {
			if state := stateOf(t, conn); state != unix.BPF_TCP_CLOSE_WAIT {
				t.Fatalf("%s: the connection is in state %d, want CLOSE-WAIT", name, state)
			}
		}
		conn.Close()
		want := "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 60\r\nCache-Control: no-store\r\nConnection: close\r\n\r\nNo worker took this connection in time. Please try again.\n"
		want = strings.Replace(want, "60", fmt.Sprint(len(want)-strings.Index(want, "\r\n\r\n")-4), 1)
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if len(b.log("connection refused")) == 0 {
		t.Error("nothing was logged")
	}
}

// stateOf returns the state of a connection (TCP_INFO, man 7 tcp).
func stateOf(t *testing.T, conn *net.TCPConn) (state uint8) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		state = info.State
	})
	return state
}

// TestRefuseClose: no answer, for protocols that are not HTTP.
func TestRefuseClose(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{worker: []string{"mute"}, notReady: true, flags: []string{"--refuse", "close", "--max-retries", "0"}})
	conn, err := b.dial(source(0))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); len(got) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestPatience: --max-retries counts the tries after the first; sticky-listen's
// retryCount < maxRetries made 5 mean 4, and 0 could not be said.
func TestPatience(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		delay, retries string
		min, max       time.Duration
	}{
		{"1h", "0", 0, patience}, // it does not wait at all, however busy the machine is
		{"100ms", "5", 500 * time.Millisecond, 5 * time.Second},
	} {
		b := start(t, 1, options{worker: []string{"mute"}, notReady: true, flags: []string{"--retry-delay", c.delay, "--max-retries", c.retries}})
		begin := time.Now()
		a, err := b.get(source(0), "/")
		if took := time.Since(begin); err != nil || a.status != http.StatusBadGateway || took < c.min || took > c.max {
			t.Errorf("%s retries: %+v, %v after %v", c.retries, a, err, took)
		}
	}
}

// TestWhenDownNext: after the retries the next slot takes the client, in an order
// that spreads the clients of the empty slot.
func TestWhenDownNext(t *testing.T) {
	t.Parallel()
	broken := t.TempDir() + "/broken"
	b := start(t, 3, options{worker: []string{"broken", broken}, flags: []string{"--when-down", "next", "--retry-delay", "10ms", "--max-retries", "2", "--backoff-min", "1h", "--backoff-max", "1h"}})
	os.WriteFile(broken, nil, 0o600)
	unix.Kill(b.worker(0), unix.SIGKILL)
	b.await("workers keep dying young, next start is delayed")
	others := make(map[int]int)
	for i := range 20 {
		from := sourceIn(0, 3, i)
		first := b.mustGet(from, "/").slot
		if again := b.mustGet(from, "/").slot; again != first {
			t.Errorf("%v went to slot %d, then to slot %d", from, first, again)
		}
		others[first]++
	}
	if others[0] != 0 || others[1] == 0 || others[2] == 0 {
		t.Errorf("clients of slot 0 went to %v", others)
	}
}

// TestBadCommands: a command that exits at once, or cannot be started: a clear
// message, delays between starts, a 502, and the master goes on.
func TestBadCommands(t *testing.T) {
	t.Parallel()
	notAProgram := filepath.Join(t.TempDir(), "not-a-program")
	program(t, notAProgram, []byte("\x00\x01\x02"), 0o700)
	for _, c := range []struct {
		name    string
		message string
		worker  []string
	}{
		{"exits at once", "worker exited", []string{"exit", "7"}},
		{"is not ready in time", "worker is not ready in time; it must accept connections or say ready", []string{"mute"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, 1, options{worker: c.worker, notReady: true, flags: []string{"--ready-timeout", "200ms", "--max-retries", "1", "--kill-timeout", "1s"}})
			b.await(c.message)
			b.awaitCount("workers keep dying young, next start is delayed", 2)
			if a, err := b.get(source(0), "/"); err != nil || a.status != http.StatusBadGateway {
				t.Errorf("%+v, %v", a, err)
			}
			b.signal(unix.SIGTERM)
			if status := b.exit(); status != exitOK {
				t.Errorf("exit status %d", status)
			}
		})
	}
	t.Run("vanishes", func(t *testing.T) {
		// It is there when handfast starts, but is not a program.
		a := begin(t, "run", "--worker-link", "native", "--listen", "127.0.0.1:0", "-n", "1", "--", notAProgram)
		a.says("worker cannot be started")
		a.says("exec format error")
		a.stop()
		a.ends(exitFailure)
	})
}

// TestUsage: a sentence that names the flag, the value and what is allowed, and
// exit status 2.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		says   []string
	}{
		{"run --workers 0 -- true", exitUsage, []string{"--workers 0", "1 to 1024"}},
		{"run --workers 1025 -- true", exitUsage, []string{"--workers 1025", "1 to 1024"}},
		{"run --workers many -- true", exitUsage, []string{"workers", `"many"`}},
		{"run --retry-delay 0 -- true", exitUsage, []string{"--retry-delay 0s", "at least 1ms"}},
		{"run --max-retries -1 -- true", exitUsage, []string{"--max-retries -1", "0 to"}},
		{"run --max-retries 2147483647 --retry-delay 10s -- true", exitUsage, []string{"--max-retries 2147483647", "--retry-delay 10s", "24h"}},
		{"run --when-down later -- true", exitUsage, []string{`--when-down "later"`, "wait or next"}},
		{"run --refuse politely -- true", exitUsage, []string{`--refuse "politely"`, "http or close"}},
		{"run --log-level loud -- true", exitUsage, []string{`--log-level "loud"`, "debug"}},
		{"run --hash-seed 4294967296 -- true", exitUsage, []string{"--hash-seed 4294967296", "4294967295"}},
		{"run --ipv6-prefix 129 -- true", exitUsage, []string{"--ipv6-prefix 129", "0 to 128"}},
		{"run --backoff-min 2s --backoff-max 1s -- true", exitUsage, []string{"--backoff-max 1s", "at least 2s"}},
		{"run --drain-timeout -1s -- true", exitUsage, []string{"--drain-timeout -1s", "at least 0s"}},
		{"run --bogus -- true", exitUsage, []string{"bogus"}},
		{"run", exitUsage, []string{"COMMAND"}},
		{"walk", exitUsage, []string{`"walk"`, "run"}},
		{"slot", exitUsage, []string{"ADDRESS"}},
		{"slot 1.2.3", exitUsage, []string{`"1.2.3"`, "IP address"}},
		{"slot 1.2.3.4 --workers 0", exitUsage, []string{"--workers 0"}},
		{"slot 1.2.3.4 5.6.7.8", exitUsage, []string{"one ADDRESS"}},
		{"slot ::ffff:192.0.2.1 --workers 4", exitOK, []string{"2"}},
		{"slot --workers=4 192.0.2.1", exitOK, []string{"2"}},
		{"slot -n 4 -- 192.0.2.1", exitOK, []string{"2"}},
		{"run --listen 127.0.0.1:http-no -- true", exitUsage, []string{"http-no"}},
		{"run --listen 127.0.0.1:0 -- no-such-program", exitFailure, []string{"no-such-program", "not found"}},
		{"", exitOK, []string{"handfast run"}},
		{"--version", exitOK, []string{"handfast version"}},
		{"run --help", exitOK, []string{"--retry-delay", "HANDFAST_LISTEN", "SIGUSR2", "Exit status"}},
	} {
		var out fdtest.Log
		status := run(t.Context(), append([]string{"handfast"}, strings.Fields(c.args)...), &out, &out)
		for _, want := range c.says {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: does not say %s: %s", c.args, want, &out)
			}
		}
		if status != c.status {
			t.Errorf("%s: exit status %d, want %d: %s", c.args, status, c.status, &out)
		}
	}
	t.Run("environment", func(t *testing.T) {
		t.Setenv("HANDFAST_WORKERS", "none")
		var out fdtest.Log
		if status := run(t.Context(), []string{"handfast", "run", "--", "true"}, &out, &out); status != exitUsage || !strings.Contains(out.String(), "HANDFAST_WORKERS") {
			t.Errorf("status %d: %s", status, &out)
		}
	})
}
