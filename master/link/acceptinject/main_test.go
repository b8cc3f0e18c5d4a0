package acceptinject

import (
	"errors"
	"os"
	"strings"
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

// TestCheck: on a kernel that is too old the error says so, and which one is not.
func TestCheck(t *testing.T) {
	err := Check()
	if !fdtest.IsLinuxOlder(5, 19) {
		fdtest.Check(t, err)
	} else if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "it needs Linux 5.19") || !strings.Contains(err.Error(), "this is Linux "+fdtest.Kernel()) {
		t.Error(err)
	}
}

// TestServers: each server is handed its slot's connections in answer to accept.
func TestServers(t *testing.T) { foreigntest.TryServers(t, play) }

// TestServersUnprivileged: the same without privileges, for one server of each kind: one process, a child for each core, a
// listener for each child, threads that wait.
func TestServersUnprivileged(t *testing.T) {
	foreigntest.TryUnprivileged(t, "^(TestServers|TestCheck)$/^(go|gunicorn|nginx-reuseport|java-blocking)$", 1+1+4)
}
