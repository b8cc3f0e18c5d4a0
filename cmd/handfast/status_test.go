package main

import (
	"os"
	"regexp"
	"slices"
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
	const narrow = `shop v1, pid 1, up 1d2h, not ready: slot 1 is empty
[::]:80 127.0.0.1:81, route master, link native, by header:X-User
generation 3, reload: 1 of 2 slots since 3s, and another one follows
of no slot: 2 parked, 3 idle

SLOT STATE    PID GEN UPTIME HANDED OFF ACCEPTED PARKED REFUSED FULL RESTARTS
0    serving  100 3   1m1s   123456     5        7      0       0    0
0    starting 101 3   1s     -          -        -      -       -
1    empty    -   -   -      0          -        0      1       2    4
1    draining 98  2   1d1h   -          -        -      -       -

all 0: OPEN
slot 1: exited with status 3, 2h0m ago; next try in 9s
`
	s.Totals = master.Totals{Parked: 9, Refused: 1, Idle: 3}
	s.Slots[1].NextStart = at(-9 * time.Second)
	if got := statusWithin(&s, 80); got != narrow {
		t.Errorf("\n%s\nwant\n%s", got, narrow)
	}
	s.Totals, s.Slots[1].NextStart = master.Totals{}, nil
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
	s.Draining[0].Deadline = at(-time.Minute)
	if got := statusText(&s); !strings.Contains(got, "at most (handfast drain --now ends that)\ngeneration 2: 1 draining since ") || !strings.Contains(got, ", 1m0s more at most\n\nSLOT") {
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

// TestStatusWithin: lines break between words where a window is narrower, what they go on with is moved in, and no word is lost.
func TestStatusWithin(t *testing.T) {
	const text = "generation 1: 32 lingering for its clients\n\nshort\naWordThatIsLongerThanAnyWindow\n"
	if got, want := wrap(text, 20), "generation 1: 32\n  lingering for its\n  clients\n\nshort\naWordThatIsLongerTha\n  nAnyWindow\n"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	now := time.Now()
	s := master.Status{Now: now, Name: strings.Repeat("n", 40), Version: "v1.2.3", Started: now, Route: "kernel", Link: "native", Key: "address",
		Addresses: []string{"[2001:db8:1234:5678:9abc:def0:1234:5678]:8443", "[2001:db8:1234:5678:9abc:def0:1234:5679]:8443"},
		Largest:   &master.LargestClient{Client: "2001:db8:1234:5678:9abc:def0:1234:5678", Share: 0.91, Of: 1234567, At: now}}
	open, rate := 1234, 123.4
	byMaster := s
	for i := range 32 {
		s.Slots = append(s.Slots, master.SlotStatus{Slot: i, InUse: true, State: "serving", Open: &open, Rate: &rate, Queue: new(0), Restarts: i,
			Worker: &master.WorkerStatus{PID: 4000000 + i, Generation: 1234, State: "serving", Started: now, Accepted: new(uint64(12345678)), Memory: new(int64(1 << 30))}})
	}
	for i := range 32 { // as wide as it gets, by the master's route
		wide := s.Slots[i]
		wide.Open, wide.Queue, wide.HandedOff, wide.Worker = nil, nil, new(uint64(12345678)), new(*wide.Worker)
		wide.Worker.MaxOpen, wide.Worker.Open, wide.LastEnd = new(1000), new(uint64(1000)), &master.End{Why: "exited with signal killed", At: now}
		byMaster.Slots = append(byMaster.Slots, wide)
	}
	if text := statusWithin(&byMaster, 80); widest(strings.Split(text, "\n")) > 80 || !strings.Contains(text, "\n\nall 0: PARKED, REFUSED\nno room for UPTIME\nslot 0 (and 31 more): exited") {
		t.Errorf("by the master's route:\n%s", text)
	}
	for width := 20; width < 200; width++ {
		text := statusWithin(&s, width)
		if width >= 80 && widest(strings.Split(text, "\n")) > width {
			t.Fatalf("within %d:\n%s", width, text)
		}
		for _, part := range []string{"SLOT", "RESTARTS", "ACCEPTED", "4000031", "31\n", "QUEUE"} {
			if !strings.Contains(text, part) {
				t.Fatalf("within %d there is no %q:\n%s", width, part, text)
			}
		}
	}
}

// TestWords: the page has the columns of status, under the same titles and in the same order, and OPERATING.md says what each of them is that
// does not say it itself.
func TestWords(t *testing.T) {
	html, err := os.ReadFile("../../master/admin/page.html")
	if err != nil {
		t.Fatal(err)
	}
	_, columns, _ := strings.Cut(string(html), "const slotColumns = [")
	columns, _, _ = strings.Cut(columns, "\n];")
	var onPage []string
	for _, title := range regexp.MustCompile(`(?m)^  \['([^']+)',`).FindAllStringSubmatch(columns, -1) {
		onPage = append(onPage, strings.ToUpper(title[1]))
	}
	if !slices.Equal(onPage, titles) {
		t.Errorf("the page has the columns\n%q, status\n%q", onPage, titles)
	}
	operating, err := os.ReadFile("OPERATING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, explained, _ := strings.Cut(string(operating), "| column | meaning |")
	explained, _, _ = strings.Cut(explained, "\n\n")
	for _, title := range titles {
		if !strings.Contains(explained, title) {
			t.Errorf("OPERATING.md does not explain %s", title)
		}
	}
}

// TestLeaving: of each generation those that linger have a line, and those that drain, in whatever order workers come.
func TestLeaving(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	after := func(d time.Duration) *time.Time { return new(now.Add(d)) }
	worker := func(generation int, state string, since time.Duration, until, deadline *time.Time) master.WorkerStatus {
		return master.WorkerStatus{Generation: generation, State: state, Since: now.Add(-since), Until: until, Deadline: deadline}
	}
	s := master.Status{Now: now, Draining: []master.WorkerStatus{
		worker(1, "draining", time.Minute, nil, after(2*time.Minute)), worker(1, "lingering", 5*time.Second, after(4*time.Second), after(time.Hour)),
		worker(1, "draining", 2*time.Minute, nil, after(time.Minute)), worker(2, "lingering", time.Second, after(9*time.Second), after(time.Hour)),
		worker(1, "lingering", 3*time.Second, after(7*time.Second), after(30*time.Minute)), worker(2, "stopping", time.Second, nil, after(time.Second)),
	}}
	const want = `generation 1: 2 lingering for its clients since 5s, 7s more if none comes back, 1h0m more at most (handfast drain --now ends that)
generation 2: 1 lingering for its clients since 1s, 9s more if none comes back, 1h0m more at most (handfast drain --now ends that)
generation 1: 2 draining since 2m0s, 2m0s more at most
`
	if got := drainingText(&s); got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
}
