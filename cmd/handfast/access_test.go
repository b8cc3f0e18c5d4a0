package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// accessLine is a line of the access log.
type accessLine struct {
	Peer, Client, Result, Reason string
	Slot, PID                    int
	Parked                       float64
}

// readAccess reads the lines that are whole: the reader may find a write half done.
func readAccess(t *testing.T, path string) (lines []accessLine) {
	t.Helper()
	text, _ := os.ReadFile(path)
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	for line := range strings.Lines(string(text)) {
		var a accessLine
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		lines = append(lines, a)
	}
	return lines
}

// TestAccessLog: one line for each connection, also for such as waited or were refused; and
// SIGUSR1 opens the file anew.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "access.log")
	gate := filepath.Join(t.TempDir(), "gate")
	b := start(t, 1, options{
		variant: variant{route: "auto"},
		flags:   []string{"--access-log", path, "--max-retries", "2", "--retry-delay", "50ms"},
		worker:  []string{"gate", gate}, notReady: true,
	})
	if a, err := b.get(source(1), "/"); err != nil || a.status != 502 {
		t.Fatalf("%+v, %v", a, err)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.await("worker ready")
	pid := b.mustGet(source(2), "/").pid
	var lines []accessLine
	if !eventually(func() bool { lines = readAccess(t, path); return len(lines) == 2 }) {
		t.Fatalf("%d lines", len(lines))
	}
	if l := lines[0]; l.Client != source(1).String() || l.Result != "refused" || l.Reason != "slot_empty" || l.Parked < 0.1 {
		t.Errorf("refused: %+v", l)
	}
	if l := lines[1]; l.Client != source(2).String() || l.Result != "handed_off" || l.PID != pid || l.Parked != 0 || !strings.HasPrefix(l.Peer, l.Client+":") {
		t.Errorf("handed off to %d: %+v", pid, l)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	b.signal(unix.SIGUSR1)
	if !eventually(func() bool { b.mustGet(source(3), "/"); return len(readAccess(t, path)) > 0 }) {
		t.Error("the file was not opened anew")
	}
}

// TestAccessLogRoute: the kernel's route and an access log exclude each other.
func TestAccessLogRoute(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "access.log")
	out := &strings.Builder{}
	if status := run(t.Context(), []string{"handfast", "run", "--listen", "127.0.0.1:0", "--route", "kernel", "--access-log", path, "--", "true"}, out, out); status != exitUsage ||
		!strings.Contains(out.String(), "use --route master") {
		t.Errorf("status %d: %s", status, out)
	}
}
