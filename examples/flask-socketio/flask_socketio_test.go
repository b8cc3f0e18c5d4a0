// Package flask_socketio_test runs servers of Flask-SocketIO and python-socketio under the real command, and clients of that library.
package flask_socketio_test

import (
	"maps"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// round is what clients.py says when every client has its answer.
type round struct {
	Round, Reconnects int
	Workers           map[string]int
}

func TestGunicorn(t *testing.T) {
	try(t, func(address string) []string {
		return []string{trial.Need(t, "gunicorn", "gunicorn"), "-b", address, "--threads", "100", "--keep-alive", "0", "app:app"}
	})
}

func TestUvicorn(t *testing.T) {
	if os.Getenv("HANDFAST_TEST_CLIENTS") == "" {
		t.Skip("in make soak: it is the same library")
	}
	trial.NeedModule(t, "uvicorn", "python3-uvicorn")
	try(t, func(address string) []string {
		host, port, _ := net.SplitHostPort(address)
		return []string{trial.Python, "-m", "uvicorn", "--host", host, "--port", port, "--no-access-log", "asgi:app"}
	})
}

// try: no session of a client that polls ends, and each stays with its worker, although a reload replaces the workers.
func try(t *testing.T, command func(address string) []string) {
	trial.NeedModule(t, "flask_socketio", "python3-flask-socketio")
	trial.NeedModule(t, "requests", "python3-requests")
	address := trial.FreeAddress(t)
	flags := []string{"--session", "engine.io", "--new-sessions", "least", "--stop-timeout", "1s"}
	handfast, _ := trial.BalanceAt(t, address, flags, command(address)...)
	clients := trial.Start(t, trial.Python, "clients.py", "http://"+address, "20", "inf")
	first := trial.AwaitRound[round](clients, 2)
	if len(first.Workers) != trial.Workers {
		t.Errorf("sessions are at %d workers: %v", len(first.Workers), first)
	}
	handfast.Process.Signal(syscall.SIGUSR2)
	handfast.Await("reload", 1, func(line string) bool { return strings.Contains(line, `"reload finished"`) })
	last := trial.AwaitRound[round](clients, 2)
	if last.Reconnects > 0 || !maps.Equal(last.Workers, first.Workers) {
		t.Errorf("before the reload %+v, after it %+v", first, last)
	}
	t.Logf("%d rounds: %+v", last.Round, last)
	clients.Process.Kill()
	clients.Wait()
	handfast.Stop()
}
