package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master"
)

// TestUnhealthyIsReplaced: another worker takes the place of one that fails its health check, which drains; the other slot's is left alone.
func TestUnhealthyIsReplaced(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		var sick atomic.Bool // slot 1, of which nobody else is asked
		var asked atomic.Int32
		health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1); r.URL.Path == "/1/1" && sick.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))
		t.Cleanup(health.Close)
		b := start(t, 2, options{flags: []string{"--healthy-when", health.URL + "/{slot}/{generation}", "--health-interval", "100ms", "--health-timeout", "20s",
			"--when-unhealthy", "replace", "--probation", "100ms"}})
		old, other := b.worker(1), b.worker(0)
		holds := b.socketFor(sourceIn(1, 2, 0))
		if !eventually(func() bool { return asked.Load() > 10 }) {
			t.Errorf("asked %d times", asked.Load())
		}
		if log := b.log("worker is not healthy"); len(log) > 0 {
			t.Error(log[0].text)
		}
		sick.Store(true)
		if l := b.await("worker is not healthy"); l.Level != "warn" || l.PID != old || l.Slot != 1 || !strings.Contains(l.text, "503") {
			t.Error(l.text)
		}
		b.await("worker is recycled: another one takes its place when it is ready")
		b.awaitCount("worker ready", 3)
		sick.Store(false)
		if err := exchange(t.Context(), holds, "still here"); err != nil {
			t.Error(err)
		}
		if a := b.mustGet(sourceIn(1, 2, 1), "/"); a.pid == old || a.generation != 1 {
			t.Errorf("%+v", a)
		}
		if a := b.mustGet(sourceIn(0, 2, 0), "/"); a.pid != other {
			t.Errorf("the other slot's is replaced: %+v", a)
		}
		holds.CloseNow()
		if !eventually(func() bool { return !alive(old) }) {
			t.Error("the old one stays")
		}
	})
}

// TestUnhealthyIsReported: without --when-unhealthy replace it is shown, and that is all.
func TestUnhealthyIsReported(t *testing.T) {
	t.Parallel()
	var sick atomic.Bool
	sick.Store(true)
	health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(health.Close)
	b := start(t, 1, options{flags: []string{"--healthy-when", health.URL + "/{slot}", "--health-interval", "100ms", "--health-timeout", "20s"}})
	b.awaitStatus("unhealthy", func(s *master.Status) bool { return s.Slots[0].State == master.Unhealthy && s.Ready })
	if text := b.metrics(); !strings.Contains(text, `handfast_worker_state{slot="0",state="unhealthy"} 1`) {
		t.Error(text)
	}
	sick.Store(false)
	b.await("worker is healthy again")
	b.awaitStatus("healthy", func(s *master.Status) bool { return s.Slots[0].State == "serving" })
}

// TestMaxAge: workers are replaced again and again, and no client notices.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		b := start(t, 2, options{flags: []string{"--max-age", "1s", "--probation", "0s"}})
		served, stop := b.closedLoop(4, time.Hour)
		b.awaitCount("worker ready", 6)
		if l := b.await("worker is recycled: another one takes its place when it is ready"); !strings.Contains(l.text, "--max-age") {
			t.Error(l.text)
		}
		before := served.Load()
		if !eventually(func() bool { return served.Load() > before+10 }) {
			t.Error("nothing is served")
		}
		stop()
		for _, l := range b.log("worker exited") {
			if l.Exit != "status 0" {
				t.Error(l.text)
			}
		}
	})
}

// growServer has as much memory as it is asked to.
const growServer = `
import os, socket, sys
host, port = sys.argv[1].split(':')
s = socket.create_server((host, int(port)), backlog=100)
while True:
    c, peer = s.accept()
    if b' /grow ' in c.recv(65536):
        memory = b'x' * (100 << 20)
    body = b'slot=0 pid=%d generation=1 client=%s\n' % (os.getpid(), peer[0].encode())
    c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' % (len(body), body))
    c.close()
`

// TestMaxMemory: a worker with more memory than it may have is replaced; what it has is shown.
func TestMaxMemory(t *testing.T) {
	t.Parallel() // it is a wait
	address := trial.FreeAddress(t)
	b := start(t, 1, options{
		flags:  []string{"--listen", address, "--worker-link", "any", "--route", "kernel", "--max-memory", "80MiB", "--probation", "0s", "--stop-timeout", "1s", "--drain-timeout", "1s"},
		change: instead(debianPython(t), "-c", growServer, address),
	})
	old := b.worker(0)
	b.awaitStatus("its memory", func(s *master.Status) bool {
		w := s.Slots[0].Worker
		return w != nil && w.Memory != nil && *w.Memory > 1<<20 && *w.Memory < 80<<20
	})
	if text := b.tell("status"); !strings.Contains(text, " MEMORY") || !strings.Contains(text, " MiB") {
		t.Error(text)
	}
	b.mustGet(source(0), "/grow")
	if l := b.await("worker is recycled: another one takes its place when it is ready"); l.PID != old || !strings.Contains(l.text, "more than --max-memory 80 MiB") {
		t.Error(l.text)
	}
	b.awaitCount("worker ready", 2)
	if a := b.mustGet(source(0), "/"); a.pid == old {
		t.Errorf("%+v", a)
	}
}

// TestMaxRestarts: workers that keep dying end it all, with a status of its own, and what the last one has written.
func TestMaxRestarts(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{worker: []string{"exit", "4"}, notReady: true, flags: []string{"--max-restarts", "2"}})
	l := b.await("workers keep dying young: giving up")
	if l.Level != "error" || !strings.Contains(l.text, "exited with status 4") || !strings.Contains(l.text, `"in_a_row":3`) {
		t.Error(l.text)
	}
	if status := b.exit(); status != exitGaveUp {
		t.Errorf("exit status %d", status)
	}
	if n := len(b.log("worker exited")); n != 3 {
		t.Errorf("%d workers", n)
	}
}

// TestWatchingMistakes: what makes no sense is refused, with what would.
func TestWatchingMistakes(t *testing.T) {
	t.Parallel()
	for args, says := range map[string]string{
		"--healthy-when 3s":                                       "want tcp:HOST:PORT or http://HOST:PORT/PATH",
		"--healthy-when soon":                                     "want tcp:HOST:PORT or http://HOST:PORT/PATH",
		"--healthy-when https://localhost/{slot}":                 "want tcp:HOST:PORT or http://HOST:PORT/PATH",
		"--healthy-when tcp:localhost:9000 --workers 2":           "want {slot} in it",
		"--when-unhealthy replace":                                "needs --healthy-when",
		"--healthy-when tcp:127.0.0.{slot}:9 --health-failures 0": "--health-failures 0: want 1 to",
		"--health-interval 1ms":                                   "--health-interval 1ms: want at least 100ms",
		"--health-timeout 0s":                                     "--health-timeout 0s: want at least 1ms",
		"--max-memory 512":                                        `--max-memory "512": want at least 1MiB`,
		"--max-memory 512M":                                       "did you mean 512MiB",
		"--max-memory 9999999999GiB":                              "--max-memory",
		"--max-memory -5MiB":                                      "--max-memory",
		"--max-age 5ms":                                           "--max-age 5ms: want 0 for none, or at least 1s",
		"--max-age -1s":                                           "--max-age -1s",
		"--max-restarts -1":                                       "--max-restarts -1: want 0 to",
	} {
		var out fdtest.Log
		command := "handfast run --listen 127.0.0.1:0 " + args + " -- true"
		if status := run(t.Context(), strings.Fields(command), &out, &out); status != exitUsage || !strings.Contains(out.String(), says) {
			t.Errorf("%s: exit status %d, %s", args, status, fmt.Sprintf("want %q in %s", says, &out))
		}
	}
}
