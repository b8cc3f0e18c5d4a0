package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
)

// Row A14: a version that dies soon after it has taken over replaces nothing: the old workers, which
// stood by, are back in all slots, and the reload fails. One that lasts replaces them.
func TestProbation(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		file := filepath.Join(t.TempDir(), "dies")
		b := start(t, 2, options{worker: []string{"dies", file}, flags: []string{"--route", route, "--probation", "2s"}})
		old := []int{b.worker(0), b.worker(1)}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if text := b.begin("reload").ends(exitFailure); !strings.Contains(text, "worker exited with status 4; slots 0 to 1 keep what they had") {
			t.Errorf("reload says %s", text)
		}
		b.awaitCount("worker is back in its slot, since its successor has failed on probation", 2)
		s := b.awaitStatus("the old workers", func(s *master.Status) bool { return len(s.Draining) == 0 })
		for slot, pid := range old {
			if w := s.Slots[slot].Worker; w == nil || w.PID != pid || w.State != "serving" || s.Slots[slot].Standby != nil {
				t.Errorf("slot %d: %+v", slot, s.Slots[slot])
			}
			for range 5 {
				if a := b.mustGet(sourceIn(slot, 2, 0), "/"); a.pid != pid {
					t.Errorf("%+v answers in slot %d, want %d", a, slot, pid)
				}
			}
		}
		if s.Generation != 1 {
			t.Errorf("generation %d", s.Generation)
		}

		os.Remove(file)
		b.signal(unix.SIGUSR2)
		b.awaitStatus("the probation", func(s *master.Status) bool { return s.Reload.Probation != nil && s.Reload.Done == 2 })
		text := b.tell("status")
		if !strings.Contains(text, "generation 3, reload: 2 of 2 slots since ") || !regexp.MustCompile(`(?m)^1 +standby `).MatchString(text) {
			t.Errorf("status says %s", text)
		}
		b.await("reload finished")
		for slot := range old {
			if !eventually(func() bool { return b.mustGet(sourceIn(slot, 2, 0), "/").generation == 3 }) {
				t.Errorf("the new worker does not answer in slot %d", slot)
			}
		}
		if route == "kernel" {
			return
		}
		if text := b.tell("reload"); !strings.Contains(text, "the new workers are on probation\nreloaded: 2 slots run generation 4") {
			t.Errorf("reload says %s", text)
		}
	})
}
