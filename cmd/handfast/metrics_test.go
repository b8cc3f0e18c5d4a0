package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// metrics returns what Prometheus would read.
func (b *instance) metrics() string {
	b.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", b.admin)
	}}}
	resp, err := client.Get("http://localhost/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// TestMetrics: what happens is counted: a connection that was handed off, one that was parked until
// there was a worker, one that was refused, a reload, and a worker that was killed.
func TestMetrics(t *testing.T) {
	t.Parallel()
	gate := t.TempDir() + "/gate"
	b := start(t, 1, options{worker: []string{"gate", gate}, notReady: true, flags: []string{"--max-per-client", "1", "--max-retries", "1000"}})
	b.await("worker started")
	parked, err := b.dial(source(1))
	if err != nil {
		t.Fatal(err)
	}
	defer parked.Close()
	fmt.Fprint(parked, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
	// shows waits for lines.
	shows := func(lines ...string) {
		t.Helper()
		text := ""
		for _, line := range lines {
			if !eventually(func() bool { text = b.metrics(); return strings.Contains(text, "\n"+line+"\n") }) {
				t.Errorf("no %q in\n%s", line, text)
			}
		}
	}
	shows("handfast_ready 0", `handfast_slot_parked_connections{slot="0"} 1`, "handfast_parked_connections 1")
	if a, err := b.get(source(1), "/"); err != nil || a.status != http.StatusServiceUnavailable {
		t.Errorf("%+v, %v", a, err)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if a, err := response(parked); err != nil || a.status != http.StatusOK {
		t.Errorf("%+v, %v", a, err)
	}
	b.mustGet(source(2), "/")
	shows("handfast_ready 1", "handfast_accepted_connections_total 3", `handfast_handed_off_connections_total{slot="0"} 2`,
		"handfast_parked_seconds_count 1", `handfast_refused_connections_total{reason="too_many_of_client"} 1`)
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	shows(`handfast_reloads_total{result="success"} 1`, `handfast_worker_generation{slot="0"} 2`)
	unix.Kill(b.mustGet(source(2), "/").pid, unix.SIGKILL)
	shows(`handfast_worker_failures_total{reason="exited"} 1`, `handfast_worker_restarts_total{slot="0"} 1`, "handfast_ready 1")

	before := counted(b.metrics())
	b.upgrades(2)
	shows("handfast_ready 1", "handfast_upgrades_total 2")
	if after := counted(b.metrics()); len(before) < 20 || !slices.Equal(before, after) {
		t.Errorf("counted before the upgrades\n%s\nand afterwards\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	b.mustGet(source(2), "/")
	shows("handfast_accepted_connections_total 5")
}

// counted returns the lines of counters and histograms of ours, but for the one of upgrades.
func counted(metrics string) (lines []string) {
	for line := range strings.Lines(metrics) {
		name, _, _ := strings.Cut(line, " ")
		name, _, _ = strings.Cut(name, "{")
		for _, end := range []string{"_total", "_count", "_sum", "_bucket"} {
			if strings.HasPrefix(name, "handfast_") && strings.HasSuffix(name, end) && name != "handfast_upgrades_total" {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	slices.Sort(lines)
	return lines
}
