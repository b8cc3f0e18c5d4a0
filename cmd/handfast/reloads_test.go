package main

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// fromEnv returns a number that an environment variable asks for, or that by default (make soak).
func fromEnv(t *testing.T, name string, byDefault int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return byDefault
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestManyReloads: a site that deploys again and again while its clients have WebSockets, of which each generation has its share. HANDFAST_TEST_RELOADS=136
// HANDFAST_TEST_SOCKETS=1000 HANDFAST_TEST_WITHIN=10m is the bar of a public report. None of them is cut, or with --max-draining those alone whose generation is too
// old; there are as many processes as there must be, and the master's memory does not grow with the reloads.
func TestManyReloads(t *testing.T) {
	t.Parallel()
	const (
		slots     = 2
		perWorker = 256 << 10 // of the master's memory, more than twice as much as was seen
	)
	reloads, sockets := reloads(t, 5), fromEnv(t, "HANDFAST_TEST_SOCKETS", 24)
	within, err := time.ParseDuration(os.Getenv("HANDFAST_TEST_WITHIN"))
	if err != nil {
		within = 0
	}
	share := max(slots, sockets/(reloads+1))
	for _, most := range []int{0, 2} {
		t.Run(fmt.Sprintf("max-draining=%d", most), func(t *testing.T) {
			t.Parallel()
			b := start(t, slots, options{lean: true, flags: []string{"--max-draining", fmt.Sprint(most), "--stop-timeout", "100ms", "--log-level", "info"}})
			before, began := b.memory(), time.Now()
			var of [][]*websocket.Conn // by generation
			largest, open := before, 0
			for generation := 1; ; generation++ {
				of = append(of, nil)
				for i := 0; i < share || generation == reloads+1 && open < sockets; i++ {
					of[generation-1] = append(of[generation-1], b.socketFor(sourceIn(i%slots, slots, i%100)))
					open++
				}
				if generation > reloads {
					break
				}
				time.Sleep(time.Until(began.Add(within * time.Duration(generation) / time.Duration(reloads))))
				b.signal(unix.SIGUSR2)
				b.awaitCount("reload finished", generation)
				largest = max(largest, b.memory())
			}
			kept := len(of)
			if most > 0 {
				kept = most + 1
			}
			b.awaitCount("worker exited", slots*(len(of)-kept))
			status := b.status()
			living := len(status.Slots) + len(status.Draining)
			if living != slots*kept {
				t.Errorf("%d workers run, want %d", living, slots*kept)
			}
			if n := len(b.log("worker is ended before its time: of its slot more workers linger and drain than may")); n != slots*(len(of)-kept) {
				t.Errorf("%d workers were ended before their time, want %d", n, slots*(len(of)-kept))
			}
			cut := 0
			for i, all := range of {
				for _, conn := range all {
					err := exchange(t.Context(), conn, "still there")
					if err != nil {
						cut++
					}
					if isOld := i < len(of)-kept; isOld != (err != nil) {
						t.Errorf("a WebSocket of generation %d, of %d: %v", i+1, len(of), err)
					}
				}
			}
			t.Logf("%d reloads in %v, %d WebSockets, %d cut, %d workers run, of %d started; the master's memory: %d KiB, at most %d KiB, in the end %d KiB",
				reloads, time.Since(began).Round(time.Second), open, cut, living, slots*len(of), before>>10, largest>>10, b.memory()>>10)
			if largest > before+16<<20+living*perWorker {
				t.Errorf("the master had %d KiB, at first %d KiB", largest>>10, before>>10)
			}
		})
	}
}

// TestDrainSpread: WebSockets of a worker that was replaced are closed one after the other, over --drain-spread, and not all when it ends.
func TestDrainSpread(t *testing.T) {
	t.Parallel()
	const sockets = 60
	byRoutes(t, func(t *testing.T, _ string) {
		// Each would be open for a second longer than the one before.
		b := start(t, 1, options{lean: true, flags: []string{"--drain-timeout", "60s", "--drain-spread", "60s", "--stop-timeout", "100ms"}})
		closed := make(chan error, sockets)
		for i := range sockets {
			conn := b.socketFor(source(i))
			go func() { _, _, err := conn.Read(t.Context()); closed <- err }()
		}
		old := b.worker(0)
		b.signal(unix.SIGUSR2)
		b.await("reload finished")
		for range 2 {
			select {
			case err := <-closed:
				if err == nil {
					t.Error("a message that nobody has sent")
				}
			case <-time.After(patience):
				t.Fatal("none is closed")
			}
		}
		if len(closed) > sockets/2 || !alive(old) {
			t.Errorf("%d others are closed at the same time; the worker lives: %v", len(closed), alive(old))
		}
	})
}
