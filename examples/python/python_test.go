// Package python_test runs the Python worker, alone and under the real command.
package python_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/handfast/handfast/examples/trial"
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
