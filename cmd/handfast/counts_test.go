package main

import (
	"fmt"
	"os/exec"
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

// TestKernelCounts: where the kernel routes and eBPF may be loaded, what comes to each slot is counted: in status and metrics, over a
// reload and an upgrade, also one that may load nothing any more, and in the last line of the log. Without eBPF nobody says a figure.
func TestKernelCounts(t *testing.T) {
	t.Parallel()
	if err := ebpfAuto.may(); err != nil {
		t.Skip(err)
	}
	for name, flags := range map[string][]string{"root": nil, "dropped": {"--user", fmt.Sprint(nobody), "--drop-root"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startKernel(t, 2, options{flags: flags, change: func(cmd *exec.Cmd) {
				if flags != nil {
					last := len(cmd.Args) - 2 // before "http"
					cmd.Path, cmd.Args[last] = everybodys(t, cmd.Path), everybodys(t, cmd.Args[last])
					cmd.Args[0] = cmd.Path
				}
			}})
			if line := b.await("the kernel counts what comes to slots"); !strings.Contains(line.text, "eBPF") {
				t.Error(line.text)
			}
			comes := func() {
				for i := range 3 {
					b.mustGet(sourceIn(0, 2, i), "/")
				}
				b.mustGet(sourceIn(1, 2, 0), "/")
			}
			expect := func(zero, one uint64) {
				t.Helper()
				s := b.status()
				if s.Slots[0].Handshakes == nil || *s.Slots[0].Handshakes != zero || *s.Slots[1].Handshakes != one || *s.Totals.Handshakes != zero+one {
					t.Errorf("slots have %s and %s handshakes, want %d and %d", known(s.Slots[0].Handshakes), known(s.Slots[1].Handshakes), zero, one)
				}
			}
			expect(0, 0)
			comes()
			expect(3, 1)
			b.tell("reload")
			comes()
			expect(6, 2)
			b.tell("upgrade")
			b.awaitStatus("an upgrade", func(s *master.Status) bool { return s.Ready && s.Upgrade.Count == 1 })
			comes()
			expect(9, 3)
			b.tell("reload")
			comes()
			expect(12, 4)
			if text := b.metrics(); !strings.Contains(text, "\n"+`handfast_slot_handshakes_total{slot="0"} 12`+"\n") {
				t.Error(text)
			}
			b.awaitStatus("rates", func(s *master.Status) bool { return s.Slots[0].Rate != nil && *s.Slots[0].Rate > 0 })
			if text := b.tell("status"); !strings.Contains(text, "  HANDSHAKES  ") || !strings.Contains(text, "  RATE/S  ") {
				t.Error(text)
			}
			if end := b.stopped(); !strings.Contains(end.text, `"handshakes":16`) || !strings.Contains(end.text, `"by_slot":"12 4"`) {
				t.Error(end.text)
			}
		})
	}
}

// TestKernelCountsNot: without eBPF status has no figure, rather than zeros; the log says once why, and `--ebpf on` does not start.
func TestKernelCountsNot(t *testing.T) {
	t.Parallel()
	b := startKernel(t, 2, options{flags: []string{"--ebpf", "off"}})
	if line := b.await("nobody counts what comes to slots: no eBPF"); !strings.Contains(line.text, "--ebpf off") {
		t.Error(line.text)
	}
	b.mustGet(source(0), "/")
	if s := b.status(); s.Slots[0].Handshakes != nil || s.Totals.Handshakes != nil || s.Slots[0].Rate != nil || s.Slots[0].Open == nil {
		t.Errorf("%+v", s)
	}
	if text := b.metrics(); strings.Contains(text, "handshakes") {
		t.Error(text)
	}
	if end := b.stopped(); strings.Contains(end.text, "handshakes") {
		t.Error(end.text)
	}
}
