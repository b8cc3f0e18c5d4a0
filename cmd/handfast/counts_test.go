package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/handfast/handfast/master"
)

// TestKernelOpen: where the kernel routes, status, metrics and the table say how many connections each slot's clients have open, through a
// reload, too, in which they stay with workers that were replaced; and which slot has most of them. A client with most of them is named,
// once.
func TestKernelOpen(t *testing.T) {
	t.Parallel()
	b := startKernel(t, 2, options{})
	is := func(zero, one int) func(*master.Status) bool {
		return func(s *master.Status) bool {
			return s.Ready && s.Totals.Open != nil && *s.Totals.Open == zero+one && *s.Slots[0].Open == zero && *s.Slots[1].Open == one
		}
	}
	b.awaitStatus("that nothing is open", is(0, 0))
	for i := range 4 {
		b.socketFor(sourceIn(0, 2, i))
	}
	last := b.socketFor(sourceIn(1, 2, 0))
	b.awaitStatus("5 connections", is(4, 1))
	b.tell("reload")
	b.awaitStatus("what workers have that were replaced", is(4, 1))
	last.CloseNow()
	if s := b.awaitStatus("that one has left", is(4, 0)); s.Fullest != nil || s.Largest != nil {
		t.Errorf("few connections are reason for %+v, %+v", s.Fullest, s.Largest)
	}
	if text := b.metrics(); !strings.Contains(text, "\n"+`handfast_slot_open_connections{slot="0"} 4`+"\n") {
		t.Error(text)
	}
	for range 120 {
		conn, err := b.dial(sourceIn(1, 2, 0))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	s := b.awaitStatus("that slot 1 has most connections", func(s *master.Status) bool { return s.Fullest != nil && s.Fullest.Slot == 1 })
	if f := s.Fullest; f.Share < 0.9 || f.Share == 1 {
		t.Errorf("%+v", f)
	}
	if text := b.tell("status"); !strings.Contains(text, "slot 1 has ") {
		t.Error(text)
	}
	line := b.await("one client has most of the connections")
	if want := fmt.Sprintf(`"client":"%v"`, sourceIn(1, 2, 0)); !strings.Contains(line.text, want) {
		t.Errorf("%s, want %s", line.text, want)
	}
	if s := b.status(); s.Largest == nil || s.Largest.Client != sourceIn(1, 2, 0).String() {
		t.Errorf("%+v", s.Largest)
	}
	if text := b.metrics(); !strings.Contains(text, "\nhandfast_largest_client_share ") || !strings.Contains(text, "\nhandfast_fullest_slot_share ") {
		t.Error(text)
	}
}
