// Package deepstream_test runs a deepstream server in several workers under the real
// command, and clients with deepstream's own client library.
package deepstream_test

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

const clients = 60

// round is what client.js says when an event, a record and a procedure of one client have
// reached all.
type round struct {
	Round              int
	From               int
	Slots, Generations map[string]int
}

// TestDeepstream: each client stays in its slot, and reaches all others whichever worker
// they have. A reload moves nobody: who is there stays with the old workers, which end
// when they have left, and who comes gets the new ones.
func TestDeepstream(t *testing.T) {
	handfast, come := begin(t)
	here := come()

	// Until a client of each slot was the one that all hear.
	heard := map[int]bool{}
	for len(heard) < trial.Workers {
		r := trial.AwaitRound[round](here, 1)
		heard[r.From] = true
		want(t, r, 1)
	}

	reload(handfast)
	want(t, trial.AwaitRound[round](here, 3), 1)

	here.Stop()
	handfast.Await("the old workers' end", trial.Workers, func(line string) bool {
		return strings.Contains(line, `"worker exited"`) && strings.Contains(line, `"status 0"`)
	})
	here = come()
	want(t, trial.AwaitRound[round](here, 3), 2)
	here.Stop()
	handfast.Stop()
}

// TestAffinity: with --drain-affinity clients that connect anew stay with the old workers, too, as long as they come.
func TestAffinity(t *testing.T) {
	if os.Getenv("HANDFAST_TEST_CLIENTS") == "" {
		t.Skip("in make soak")
	}
	handfast, come := begin(t, "--drain-affinity", "1m", "--stop-timeout", "1s")
	here := come()
	want(t, trial.AwaitRound[round](here, 2), 1)
	reload(handfast)
	for range 3 {
		here.Stop()
		here = come()
		want(t, trial.AwaitRound[round](here, 2), 1)
	}
	here.Stop()
	handfast.Stop()
}

// begin starts the server under handfast; come starts clients.
func begin(t *testing.T, flags ...string) (handfast *trial.Process, come func() *trial.Process) {
	node, dir := trial.Install(t, "server.js", "auth.js", "client.js")
	listen := trial.FreeAddress(t)
	_, port, _ := net.SplitHostPort(listen)
	t.Setenv("PORT", port)
	t.Setenv("REDIS", trial.Redis(t))
	handfast, at := trial.BalanceAt(t, listen, append(flags, "--ready-when", "message"), node, filepath.Join(dir, "server.js"))
	return handfast, func() *trial.Process {
		return trial.Start(t, node, filepath.Join(dir, "client.js"), "ws://"+at+"/deepstream", strconv.Itoa(clients), "Infinity")
	}
}

func reload(handfast *trial.Process) {
	handfast.Process.Signal(syscall.SIGUSR2)
	handfast.Await("reload", 1, func(line string) bool { return strings.Contains(line, `"reload finished"`) })
}

func want(t *testing.T, got round, generation int) {
	t.Helper()
	if want := map[string]int{strconv.Itoa(generation): clients}; !maps.Equal(got.Generations, want) {
		t.Errorf("round %d: clients by generation %v, want %v", got.Round, got.Generations, want)
	}
	slots := map[string]int{}
	for i := range clients {
		address := netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + i)})
		slots[strconv.Itoa(hash.DefaultConfig().Key(address).Slot(trial.Workers))]++
	}
	if !maps.Equal(got.Slots, slots) {
		t.Errorf("round %d: clients in slots %v, want %v", got.Round, got.Slots, slots)
	}
}
