// Package sticky_listen_test runs the worker of sticky-listen's README, unchanged, under
// the real command.
package sticky_listen_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

const clients = 60

// balance runs three workers. They do not say who they are otherwise than by
// NODE_WORKER_ID, which a shell sets to their process id.
func balance(t *testing.T) (handfast *trial.Process, address string) {
	t.Helper()
	node, dir := trial.Install(t, "server.js")
	return trial.BalanceWith(t, []string{"--worker-link", "node"},
		"sh", "-c", `NODE_WORKER_ID=$$ exec "$@"`, "sh", node, filepath.Join(dir, "server.js"))
}

// ask makes a request over a connection of its own, and returns which worker answered.
func ask(t *testing.T, i int, address string) (pid string) {
	t.Helper()
	client := trial.ClientAt(trial.Loopback(i))
	defer client.CloseIdleConnections()
	response, err := client.Get("http://" + address)
	if err != nil {
		t.Errorf("client %d: %v", i, err)
		return ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	const want = "worker: "
	if err != nil || response.StatusCode != http.StatusOK || len(body) <= len(want) || string(body[:len(want)]) != want {
		t.Errorf("client %d: %s, %q, error %v", i, response.Status, body, err)
		return ""
	}
	return string(body[len(want):])
}

// place asks for every client, three times, and returns who answers in each slot. No other
// worker may answer there.
func place(t *testing.T, address string) (pids [trial.Workers]string) {
	t.Helper()
	config := hash.DefaultConfig()
	for i := 1; i <= clients; i++ {
		slot := config.Key(trial.Loopback(i)).Slot(trial.Workers)
		for range 3 {
			pid := ask(t, i, address)
			if pids[slot] == "" {
				pids[slot] = pid
			}
			if pid != pids[slot] {
				t.Fatalf("client %d: worker %s, want %s in slot %d", i, pid, pids[slot], slot)
			}
		}
	}
	for slot, pid := range pids {
		for other := range slot {
			if pid == "" || pid == pids[other] {
				t.Fatalf("workers %q, want one in each slot", pids)
			}
		}
	}
	return pids
}

// load sends requests of all clients until it is stopped; none may fail. stop returns how
// many were answered.
func load(t *testing.T, address string) (stop func() int64) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var answered atomic.Int64
	for first := range 4 {
		all.Go(func() {
			for i := first; ctx.Err() == nil; i += 4 {
				ask(t, 1+i%clients, address)
				answered.Add(1)
			}
		})
	}
	return sync.OnceValue(func() int64 { cancel(); all.Wait(); return answered.Load() })
}

func TestSticky(t *testing.T) {
	handfast, address := balance(t)
	place(t, address)
	handfast.Stop()
}

// TestReload: no request fails, all workers are others, and the old ones end.
func TestReload(t *testing.T) {
	handfast, address := balance(t)
	before := place(t, address)
	stop := load(t, address)
	defer stop()
	handfast.Process.Signal(syscall.SIGUSR2)
	handfast.AwaitReady(2 * trial.Workers)
	handfast.Await("end of the old workers", trial.Workers, func(line string) bool {
		e := parse(line)
		return e.Message == "worker exited" && e.Generation == 1 && e.Exit == "status 0"
	})
	t.Logf("%d requests", stop())
	for slot, pid := range place(t, address) {
		if pid == before[slot] {
			t.Errorf("slot %d: worker %s is still there", slot, pid)
		}
	}
	handfast.Stop()
}

// TestDeath: when a worker is killed its clients wait for the next one, and those of other
// slots notice nothing.
func TestDeath(t *testing.T) {
	handfast, address := balance(t)
	before := place(t, address)
	const killed = 1
	pid, err := strconv.Atoi(before[killed])
	if err != nil {
		t.Fatal(err)
	}
	syscall.Kill(pid, syscall.SIGKILL)
	handfast.Await("end of the worker", 1, func(line string) bool {
		e := parse(line)
		return e.Message == "worker exited" && e.PID == pid && e.Exit == "signal killed"
	})
	for slot, pid := range place(t, address) {
		if (pid == before[slot]) == (slot == killed) {
			t.Errorf("slot %d: worker %s, before %s", slot, pid, before[slot])
		}
	}
	handfast.Stop()
}

// entry is a line of handfast's log.
type entry struct {
	Message    string `json:"@message"`
	PID        int
	Generation int
	Exit       string
}

func parse(line string) (e entry) {
	json.Unmarshal([]byte(line), &e) // what is not one is a worker's own
	return e
}
