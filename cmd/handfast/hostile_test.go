package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostileDescriptors: a worker that sends the master connections whose last close waits for 6,000 s
// holds up nobody: clients of others are served, the program is replaced, and the master stops.
//
// Row A5: after the upgrade nobody was accepted, and SIGTERM did nothing.
func TestHostileDescriptors(t *testing.T) {
	for _, link := range []string{"native", "node"} {
		t.Run(link, func(t *testing.T) {
			b := start(t, 2, options{
				lean: true, notReady: true, worker: []string{"hostile"},
				flags: []string{"--worker-link", link, "--max-retries", "0", "--ready-timeout", "30s", "--stop-timeout", "100ms", "--kill-timeout", "100ms"},
			})
			b.hears("hostile", 1)
			b.upgrades(1)
			if a, err := b.get(sourceIn(1, 2, 0), "/"); err != nil {
				t.Errorf("%+v, %v", a, err)
			}
			if link == "native" {
				b.mustGet(sourceIn(0, 2, 0), "/")
			}
			b.signal(unix.SIGTERM)
			b.exit()
		})
	}
}
