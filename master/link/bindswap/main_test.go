package bindswap

import (
	"os"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/foreigntest"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/supervisor"
)

func TestMain(m *testing.M) {
	launch.Main()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process takes a second to exit
	if os.Getenv(costRole) != "" {
		playCost()
		return
	}
	os.Exit(m.Run())
}

func TestCheck(t *testing.T) {
	fdtest.Check(t, Check())
}

// TestServers: each server takes its slot's listener for its own.
func TestServers(t *testing.T) { foreigntest.TryServers(t, play) }

// TestServersUnprivileged: the same without privileges, for one server that has a listener for each of its children. How others
// take the slot's listener is tried by examples/servers.
func TestServersUnprivileged(t *testing.T) {
	foreigntest.TryUnprivileged(t, "^TestCheck$|^TestServers$/^nginx-reuseport$", 1+1+1)
}

// play starts a server in each slot, and waits until all are ready.
func play(t *testing.T, s *foreigntest.Server) *foreigntest.Stage {
	t.Helper()
	files, port := foreigntest.Group(t)
	return foreigntest.Begin(t, s, port, func(cfg *supervisor.Config) {
		cfg.Slots = noSlots{}
		cfg.NewLink = func(seat supervisor.Seat) (supervisor.Link, error) {
			return Open(Config{Listeners: files[seat.Slot : seat.Slot+1], Drain: launch.Drain{Signal: s.Drain}, Logger: cfg.Logger})
		}
	})
}

type noSlots struct{}

func (noSlots) Resize(int)                {}
func (noSlots) Fill(int, supervisor.Link) {}
func (noSlots) Empty(int)                 {}
