package acceptinject

import (
	"os"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/foreigntest"
	"github.com/handfast/handfast/master/link/launch"
)

func TestMain(m *testing.M) {
	launch.Main()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process takes a second to exit
	os.Exit(m.Run())
}

func TestCheck(t *testing.T) {
	fdtest.Check(t, Check())
}

// TestServers: each server is handed its slot's connections in answer to accept.
func TestServers(t *testing.T) { foreigntest.TryServers(t, play) }

// TestServersUnprivileged: the same without privileges, for one server of each kind: one process, a child for each core, a
// listener for each child, threads that wait.
func TestServersUnprivileged(t *testing.T) {
	foreigntest.TryUnprivileged(t, "^(TestServers|TestCheck)$/^(go|gunicorn|nginx-reuseport|java-blocking)$", 1+1+4)
}
