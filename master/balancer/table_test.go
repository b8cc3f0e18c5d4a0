package balancer

import (
	"io"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestCounts: what happens to connections is counted for their slot, whoever is in it.
func TestCounts(t *testing.T) {
	table := NewTable(2)
	table.Fill(0, &fakeWorker{name: "a", room: 2})
	b, dial, _ := serveTest(t, table, func(cfg *Config) { cfg.MaxRetries = 0 })
	counted := func(slot int, handedOff, refused, full uint64) {
		t.Helper()
		c := table.counts(slot)
		if !fdtest.Poll(func() bool {
			return c.handedOff.Load() == handedOff && c.refused.Load() == refused && c.full.Load() == full
		}) {
			t.Errorf("slot %d: handed off %d, refused %d, full %d; want %d, %d, %d",
				slot, c.handedOff.Load(), c.refused.Load(), c.full.Load(), handedOff, refused, full)
		}
	}
	comes := func(last byte) {
		client := dial(last)
		io.ReadAll(client)
		client.Close()
	}
	for range 3 {
		comes(2)
	}
	// The third is tried on the straight line, and once when it is parked.
	counted(0, 2, 1, 2)
	table.Fill(0, busyWorker("b"))
	comes(4)
	counted(0, 3, 1, 2)
	comes(1)
	counted(1, 0, 1, 0)
	table.Resize(1)
	table.Resize(2)
	counted(1, 0, 0, 0)
	counted(NoSlot, 0, 0, 0)
	if s := b.Stats(); s.HandedOff != 3 || s.Refused != 2 {
		t.Errorf("%+v", s)
	}
}
