package main

import (
	"net/http"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUpgradeLimits: the next program goes on counting a worker's connections where the one before has
// stopped, and goes on watching it.
func TestUpgradeLimits(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{flags: []string{"--max-connections-per-slot", "3", "--watchdog", "2s"}})
	worker := b.worker(0)
	open := b.occupy(source(0), 3)
	refused := func() {
		t.Helper()
		if a, err := b.get(source(0), "/"); err != nil || a.status != http.StatusServiceUnavailable {
			t.Errorf("%+v, %v", a, err)
		}
	}
	refused()
	b.upgrades(2)
	refused()
	open[0].CloseNow()
	if !eventually(func() bool { a, err := b.get(source(0), "/"); return err == nil && a.pid == worker }) {
		t.Error("there is no room for another one")
	}
	freeze(t, worker)
	if l := b.await("worker does not answer the watchdog"); l.PID != worker {
		t.Error(l.text)
	}
	b.upgrades(1)
	unix.Kill(worker, unix.SIGCONT)
	b.upgrades(1)
	for _, c := range open[1:] {
		if err := exchange(t.Context(), c, "still here"); err != nil {
			t.Error(err)
		}
	}
}
