// Package python_test runs the Python worker, alone and under the real command.
package python_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// python returns the interpreter. Who has none may skip these tests, but not
// continuous integration.
func python(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip("python3 is missing: apt-get install python3")
	}
	return path
}

func TestWorker(t *testing.T) { trial.Worker(t, python(t), "worker.py") }

// TestAlone: without a master the same program listens by itself.
func TestAlone(t *testing.T) {
	p := trial.Start(t, python(t), "worker.py", "0")
	var port int
	p.Await("listening", 1, func(line string) bool {
		fmt.Sscanf(line, "listening on port %d", &port)
		return port != 0
	})
	client := trial.ClientAt(trial.Loopback(7))
	defer client.CloseIdleConnections()
	got, err := trial.Get(client, fmt.Sprintf("127.0.0.1:%d", port))
	if want := (trial.Answer{PID: p.Process.Pid, Client: "127.0.0.7"}); got != want || err != nil {
		t.Errorf("%+v, error %v; want %+v", got, err, want)
	}
}

// TestLimit: the worker says which connections are closed, so that it gets no more than it may have.
func TestLimit(t *testing.T) {
	t.Parallel()
	p, address := trial.BalanceWith(t, []string{"--max-connections-per-slot", "3"}, python(t), "worker.py")
	var clients []*http.Client
	another := func() error {
		client := trial.ClientAt(trial.Loopback(1)) // keeps its connection
		_, err := trial.Get(client, address)
		clients = append(clients, client)
		return err
	}
	defer func() {
		for _, client := range clients {
			client.CloseIdleConnections()
		}
	}()
	for range 3 {
		if err := another(); err != nil {
			t.Error(err)
		}
	}
	if err := another(); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("the fourth: %v, want 503", err)
	}
	clients[0].CloseIdleConnections()
	trial.Eventually(t, "room for another", func() bool { return another() == nil })
	if p.Count(func(line string) bool { return strings.Contains(line, "cannot be held") }) > 0 {
		t.Error("it does not report")
	}
}

// isStopped tells whether all threads of a process have stopped: until then one may take a connection.
func isStopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return !slices.ContainsFunc(threads, func(file string) bool {
		stat, err := os.ReadFile(file)
		return err == nil && !strings.Contains(string(stat), ") T ")
	})
}

// TestWatchdog: the worker answers pings, and is replaced when it does not.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	p, address := trial.BalanceWith(t, []string{"--watchdog", "2s", "--when-hung", "replace", "--worker-link", "native", "--max-retries", "600"}, python(t), "worker.py")
	client := trial.ClientAt(trial.Loopback(1))
	defer client.CloseIdleConnections()
	before, err := trial.Get(client, address)
	if err != nil {
		t.Fatal(err)
	}
	client.CloseIdleConnections()
	syscall.Kill(before.PID, syscall.SIGSTOP)
	trial.Eventually(t, "the worker to stand still", func() bool { return isStopped(before.PID) })
	after, err := trial.Get(client, address) // waits in the mailbox
	if err != nil || after.Slot != before.Slot || after.PID == before.PID {
		t.Errorf("%+v, error %v; before: %+v", after, err, before)
	}
	hung := func(line string) bool { return strings.Contains(line, "does not answer the watchdog") }
	if n := p.Count(hung); n == 0 {
		t.Error("nobody says so")
	}
}
