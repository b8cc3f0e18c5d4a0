package main

import (
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/master"
)

// TestStatusText: each worker has a line, columns are in line, and those of which nobody knows
// anything are left out.
func TestStatusText(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	at := func(d time.Duration) *time.Time { then := ago(d); return &then }
	count := func(n uint64) *uint64 { return &n }
	s := master.Status{
		Name: "shop", Version: "v1", PID: 1, Started: ago(26 * time.Hour), Now: now,
		Route: "master", Link: "native", Key: "header:X-User", Addresses: []string{"[::]:80", "127.0.0.1:81"}, Generation: 3,
		Slots: []master.SlotStatus{
			{Slot: 0, State: "serving", InUse: true, HandedOff: count(123456), MailboxFull: count(0), Parked: 7,
				Worker: &master.WorkerStatus{PID: 100, Generation: 3, State: "serving", Started: ago(61 * time.Second), Open: count(0), Accepted: count(5)},
				Next:   &master.WorkerStatus{PID: 101, Generation: 3, State: "starting", Started: ago(time.Second)}},
			{Slot: 1, State: "empty", InUse: true, HandedOff: count(0), MailboxFull: count(2), Refused: 1, Restarts: 4,
				LastEnd: &master.End{PID: 99, At: ago(2 * time.Hour), Why: "exited with status 3"}},
		},
		Draining: []master.WorkerStatus{{Slot: 1, PID: 98, Generation: 2, State: "draining", Started: ago(25 * time.Hour)}},
		Reload:   &master.ReloadStatus{Generation: 3, Done: 1, Slots: 2, Began: ago(3 * time.Second), Queued: true},
	}
	const want = `shop v1, pid 1, up 1d2h, not ready: slot 1 is empty
[::]:80 127.0.0.1:81, route master, link native, by header:X-User
generation 3, reload: 1 of 2 slots since 3s, and another one follows

SLOT  STATE     PID  GEN  UPTIME  HANDED OFF  ACCEPTED  OPEN  PARKED  REFUSED  FULL  RESTARTS  LAST EXIT
0     serving   100  3    1m1s    123456      5         0     7       0        0     0
0     starting  101  3    1s      -           -         -     -       -        -     -
1     empty     -    -    -       0           -         -     0       1        2     4         exited with status 3, 2h0m ago
1     draining  98   2    1d1h    -           -         -     -       -        -     -
`
	if got := statusText(&s); got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
	few, many, fast := 7, 1.25, 1234.5
	kernel := s
	kernel.Slots = []master.SlotStatus{{State: "serving", InUse: true, Rate: &many, Open: &few, Queue: new(0), Worker: &master.WorkerStatus{PID: 100, Generation: 3, State: "serving", Started: now}},
		{Slot: 1, State: "serving", InUse: true, Rate: &fast, Open: &few, Queue: new(0), Worker: &master.WorkerStatus{PID: 101, Generation: 3, State: "serving", Started: now, Open: count(6)}}}
	kernel.Draining, kernel.Fullest = nil, &master.FullestSlot{Slot: 1, Share: 0.914, Of: 1000, At: ago(3 * time.Second)}
	const wantKernel = `slot 1 has 91% of the connections, the most of all slots (of the last 1000, 3s ago)

SLOT  STATE    PID  GEN  UPTIME  RATE/S  OPEN  QUEUE  PARKED  REFUSED  RESTARTS  LAST EXIT
`
	if got := statusText(&kernel); !strings.Contains(got, strings.TrimSuffix(wantKernel, "  LAST EXIT\n")) || !strings.Contains(got, "  1.2     7     0 ") || !strings.Contains(got, "  1234    6     0 ") {
		t.Error(got)
	}
	kernel.Fullest.Open = true
	if got := statusText(&kernel); !strings.Contains(got, "slot 1 has 91% of the connections, the most of all slots (of 1000 that are open)\n") {
		t.Error(got)
	}
	for handsBack, want := range map[bool]string{true: "by header:X-User, of each request\n", false: "by header:X-User, of the first request on a connection\n"} {
		s.Slots[0].Worker.HandsBack = &handsBack
		if got := statusText(&s); !strings.Contains(got, want) {
			t.Error(got)
		}
	}
	for _, slot := range []int{0, 2} {
		s.Draining = append(s.Draining, master.WorkerStatus{Slot: slot, PID: 97 - slot, Generation: 2, State: "lingering", Started: ago(time.Hour),
			Since: ago(time.Duration(3-slot) * time.Second), Until: at(time.Duration(-9-slot) * time.Second), Deadline: at(time.Duration(slot) * -time.Minute)})
	}
	if got := statusText(&s); !strings.Contains(got, "follows\ngeneration 2: 2 lingering for its clients since 3s, 11s more if none comes back, 2m0s more at most (handfast drain --now ends that)\n\nSLOT") ||
		!strings.Contains(got, "\n2     lingering  95 ") {
		t.Error(got)
	}
	s.Reload.Ended, s.Reload.Error = at(4*time.Second), "supervisor: reload failed: slot 1: why"
	if got := statusText(&s); !strings.Contains(got, "generation 3, 4s ago reload failed: slot 1: why\n") {
		t.Error(got)
	}
	s.Reload.Error = "supervisor: reload failed: slot 1: why; it wrote last:\nTraceback"
	if got := statusText(&s); !strings.Contains(got, "generation 3, 4s ago reload failed: slot 1: why\n") {
		t.Error(got)
	}
	s.Reload.Error = ""
	if got := statusText(&s); !strings.Contains(got, "generation 3, reloaded 4s ago\n") {
		t.Error(got)
	}
}

// TestStatusLastWords: the last lines of workers that ended are shown while nobody serves in their place,
// or their ends are recent; the same ones once. Row C14.
func TestStatusLastWords(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ended := func(slot int, ago time.Duration, words string, served bool) master.SlotStatus {
		s := master.SlotStatus{Slot: slot, InUse: true, State: "starting", LastEnd: &master.End{At: now.Add(-ago), Why: "exited with status 1", LastWords: words}}
		if served {
			s.Worker = &master.WorkerStatus{PID: 1, State: "serving", Started: now}
		}
		return s
	}
	for _, c := range []struct {
		slots []master.SlotStatus
		want  string
	}{
		{[]master.SlotStatus{ended(0, time.Hour, "", false)}, ""},
		{[]master.SlotStatus{ended(0, time.Hour, "one\ntwo\nthree\n\x1bfour", false)}, "\nslot 0 wrote last:\n  two\n  three\n  ?four\n"},
		{[]master.SlotStatus{ended(0, time.Hour, "long ago", true), ended(1, time.Minute, "just now", true)}, "\nslot 1 wrote last:\n  just now\n"},
		{[]master.SlotStatus{ended(0, 0, "same", false), ended(1, 0, "other", false), ended(2, 0, "same", false)},
			"\nslot 0 (and 1 more) wrote last:\n  same\n\nslot 1 wrote last:\n  other\n"},
		{[]master.SlotStatus{ended(0, 0, "a", false), ended(1, 0, "b", false), ended(2, 0, "c", false), ended(3, 0, "d", false), ended(4, 0, "e", false), ended(5, 0, "f", false)},
			"\nslot 4 wrote last:\n  e\n\nand 1 more: handfast status --json\n"},
	} {
		s := master.Status{Now: now, Started: now, Slots: c.slots}
		got := statusText(&s)
		if !strings.HasSuffix(got, c.want) || c.want == "" && strings.Contains(got, "wrote last") {
			t.Errorf("%s\nwant %q", got, c.want)
		}
	}
}
