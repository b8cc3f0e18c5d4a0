package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play the worker.
func TestMain(m *testing.M) {
	if mode := os.Getenv(envWorker); mode != "" {
		serve(mode)
		return
	}
	os.Exit(m.Run())
}

// One short run of the whole, with what needs nothing installed.
func TestRun(t *testing.T) {
	page := filepath.Join(t.TempDir(), "bench.md")
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	var out, progress bytes.Buffer
	status := run(t.Context(), []string{"bench", "--rounds", "1", "--duration", "100ms", "--held", "100",
		"--clients", "50", "--peers", "reuseport,handfast", "-o", page}, &out, &progress)
	if status != 0 {
		t.Fatalf("status %d\n%s%s", status, &out, &progress)
	}
	if got := progress.String(); strings.Count(got, "100 connections\n") != 2 {
		t.Errorf("want each peer to hold 100 connections:\n%s", got)
	}
	for _, text := range []string{"Short connections", "Connections held open", "handfast"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("no %q in the output:\n%s", text, &out)
		}
	}
	if markdown, err := os.ReadFile(page); err != nil || !bytes.Contains(markdown, []byte("| handfast |")) {
		t.Errorf("the page, error %v:\n%s", err, markdown)
	}
	if left, err := filepath.Glob(filepath.Join(temp, "handfast-bench-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}

// An interrupted run stops what it has started.
func TestRunInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var out, progress bytes.Buffer
	status := run(ctx, []string{"bench", "--duration", "1h", "--peers", "reuseport"}, &out, &progress)
	if status != 1 {
		t.Errorf("status %d, want 1\n%s", status, &progress)
	}
	if left, err := children(os.Getpid()); err != nil || len(left) > 0 {
		t.Errorf("children %v left, error %v", left, err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--rounds", "0"},
		{"--rounds", "x"},
		{"--peers", "nobody"},
		{"--works", "short,idle"},
		{"--clients", "100000000"},
		{"argument"},
	} {
		var out, progress bytes.Buffer
		if status := run(t.Context(), append([]string{"bench"}, args...), &out, &progress); status != 2 {
			t.Errorf("%v: status %d, want 2\n%s", args, status, &progress)
		}
	}
}

// The load opens as many connections as it should, each from the next client.
func TestLoad(t *testing.T) {
	seen := make(chan string, 100)
	to := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		seen <- host
		handler().ServeHTTP(w, r)
	})
	l := load{to: to, exchange: shortExchange, clients: 10, concurrency: 5, duration: time.Minute, total: 100}
	result, err := l.run(t.Context())
	if err != nil || result.failed > 0 || len(result.latencies) != 100 || result.inTime != 100 {
		t.Fatalf("%d answers, %d in time, %d failures (%v), error %v",
			len(result.latencies), result.inTime, result.failed, result.err, err)
	}
	count := map[string]int{}
	for range 100 {
		count[<-seen]++
	}
	if len(count) != 10 || count["127.1.0.0"] != 10 || count["127.1.0.9"] != 10 {
		t.Errorf("connections by client: %v, want 10 from each of 10", count)
	}
}

func TestLoadFails(t *testing.T) {
	to := serveHTTP(t, http.NotFound)
	l := load{to: to, exchange: shortExchange, clients: 1, concurrency: 2, duration: time.Minute, total: 10}
	result, err := l.run(t.Context())
	if err != nil || result.failed != 10 || !strings.Contains(result.err.Error(), "404") {
		t.Errorf("a wrong answer: %d failures (%v), error %v", result.failed, result.err, err)
	}

	l.to, l.total = netip.MustParseAddrPort("127.0.0.1:1"), 0
	result, err = l.run(t.Context())
	if err != nil || result.failed < maxFailures || !errors.Is(result.err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %d failures (%v), error %v", result.failed, result.err, err)
	}
}

func TestKeptConnections(t *testing.T) {
	to := serveHTTP(t, handler().ServeHTTP)
	l := load{to: to, exchange: heldExchange, clients: 1, concurrency: 2, duration: time.Minute, total: 10, keep: true}
	result, err := l.run(t.Context())
	if err != nil || result.failed > 0 || len(result.latencies) != 10 {
		t.Fatalf("%d answers, %d failures (%v), error %v", len(result.latencies), result.failed, result.err, err)
	}
	if n := result.closeKept(); n != 0 {
		t.Errorf("%d connections were disturbed", n)
	}
}

// serveHTTP runs a server until the test has ended.
func serveHTTP(t *testing.T, handle http.HandlerFunc) netip.AddrPort {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handle}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func TestShare(t *testing.T) {
	for _, n := range []int{0, 1, 5, 32, 10_001} {
		for of := 1; of <= 5; of++ {
			sum := 0
			for i := range of {
				part := share(n, of, i)
				if part < n/of || part > n/of+1 {
					t.Errorf("share %d of %d in %d parts: %d", i, n, of, part)
				}
				sum += part
			}
			if sum != n {
				t.Errorf("%d parts of %d: %d together", of, n, sum)
			}
		}
	}
}

// The clock of a process counts what the process does.
func TestProcessorTime(t *testing.T) {
	self := []int{os.Getpid()}
	before, err := processorTime(self)
	if err != nil {
		t.Fatal(err)
	}
	const work = 50 * time.Millisecond
	for start := time.Now(); time.Since(start) < work; {
	}
	after, err := processorTime(self)
	if err != nil {
		t.Fatal(err)
	}
	if spent := after - before; spent <= 0 || spent > time.Minute {
		t.Errorf("%v for %v of work", spent, work)
	}
	if _, err := processorTime([]int{1 << 24}); err == nil {
		t.Error("a process that is not there has a clock")
	}
}

// The format of smaps_rollup: man 5 proc_pid_smaps.
func TestAnonymous(t *testing.T) {
	rollup := "00400000-7ffd1 ---p 00000000 00:00 0    [rollup]\nRss:   884 kB\nPss:   385 kB\nPss_Anon:        301 kB\nAnonymous:  400 kB\n"
	if got, err := anonymous([]byte(rollup)); err != nil || got != 301<<10 {
		t.Errorf("%d, %v, want %d", got, err, 301<<10)
	}
	if _, err := anonymous(nil); err == nil {
		t.Error("no error for an empty file")
	}
	if got, err := memory([]int{os.Getpid()}); err != nil || got < 100<<10 {
		t.Errorf("this process has %d bytes, error %v", got, err)
	}
}
