package main

import (
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNotify: what systemd hears, from start to stop. Workers do not see its socket.
func TestNotify(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	// hear reads until a message has the assignment, and returns that message.
	hear := func(assignment string) []string {
		t.Helper()
		buf, seen := make([]byte, 4096), ""
		for {
			n, err := manager.Read(buf)
			if err != nil {
				t.Fatalf("not told %s: %v; told\n%s", assignment, err, seen)
			}
			lines := strings.Split(string(buf[:n]), "\n")
			if slices.Contains(lines, assignment) {
				return lines
			}
			seen += string(buf[:n]) + "\n"
		}
	}
	b := start(t, 2, options{change: func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=100000")
	}})
	manager.SetReadDeadline(time.Now().Add(time.Minute))
	hear("READY=1")
	hear("WATCHDOG=1")
	if env := b.mustGet(source(0), "/env").body; strings.Contains(env, "NOTIFY_SOCKET") || strings.Contains(env, "WATCHDOG") {
		t.Error("workers have the manager's variables")
	}
	b.signal(unix.SIGUSR2)
	if began := hear("RELOADING=1"); len(began) < 2 || !strings.HasPrefix(began[1], "MONOTONIC_USEC=") {
		t.Errorf("told %q", began)
	}
	if ready := hear("READY=1"); !slices.Contains(ready, "STATUS=2 of 2 slots served, generation 2") {
		t.Errorf("told %q", ready)
	}
	hear("WATCHDOG=1")
	b.signal(unix.SIGTERM)
	hear("STOPPING=1")
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}
