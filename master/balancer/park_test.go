package balancer

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
)

// scripted is a worker that takes connections at some of the times when it is asked, counted since the test began.
type scripted struct {
	began time.Time
	asked []time.Duration
	says  func(at time.Duration) error // nil: it takes them
}

func (s *scripted) Deliver(conns []fdpass.Handoff) (int, error) {
	at := time.Since(s.began)
	s.asked = append(s.asked, at)
	if err := s.says(at); err != nil {
		return 0, err
	}
	return len(conns), nil
}

// parkOne parks a connection of slot 0 and returns what became of it, and when.
func parkOne(t *testing.T, change func(*Config), arrange func(b *Balancer)) (o Outcome, at time.Duration) {
	outcomes := make(chan Outcome, 1)
	cfg := DefaultConfig()
	cfg.Strategy = inOrder{}
	cfg.Refuse = RefuseClose // so that nobody lingers
	cfg.OnOutcome = func(o Outcome) { outcomes <- o }
	if change != nil {
		change(&cfg)
	}
	b, err := New(cfg, NewTable(3))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	arrange(b)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	reexec.Lock.RLock()
	b.park(connection{Handoff: fdpass.Handoff{FD: fd}})
	reexec.Lock.RUnlock()
	if o = <-outcomes; o.Worker != nil {
		unix.Close(fd)
	}
	at = time.Since(began)
	b.Shutdown(t.Context())
	if s := b.Stats(); s.Parked != 0 || s.HandedOff+s.Refused != 1 {
		t.Errorf("%+v", s)
	}
	return o, at
}

// inOrder has all clients belong to slot 0, then 1, and so on.
type inOrder struct{}

func (inOrder) Slot(_ clientip.Client, slots, rank int) int { return rank % slots }

// TestPatience: when a parked connection is offered to workers, and until when.
func TestPatience(t *testing.T) {
	never := func(err error) func(time.Duration) error { return func(time.Duration) error { return err } }
	from := func(then time.Duration, err error) func(time.Duration) error {
		return func(at time.Duration) error {
			if at >= then {
				return nil
			}
			return err
		}
	}
	const ms = time.Millisecond
	for name, tt := range map[string]struct {
		says  func(time.Duration) error // what slot 0's worker does; nil: the slot is empty
		fills time.Duration             // when it is filled
		want  error
		at    time.Duration
		asked []time.Duration
	}{
		"there is room at once":                 {never(nil), 0, nil, 0, []time.Duration{0}},
		"a slot that is filled takes it then":   {never(nil), 1234 * ms, nil, 1234 * ms, []time.Duration{1234 * ms}},
		"an empty slot: 50 tries 100 ms apart":  {nil, 0, errEmpty, 5000 * ms, nil},
		"a full mailbox is tried again":         {from(250*ms, fdpass.ErrFull), 0, nil, 300 * ms, []time.Duration{0, 100 * ms, 200 * ms, 300 * ms}},
		"a mailbox that stays full":             {never(fdpass.ErrFull), 0, fdpass.ErrFull, 5000 * ms, nil},
		"a limit is waited for by its report":   {from(20*ms, fdpass.ErrLimit), 0, nil, 20 * ms, []time.Duration{0, 20 * ms}},
		"a limit that is there after a report":  {never(fdpass.ErrLimit), 0, fdpass.ErrLimit, 20 * ms, []time.Duration{0, 20 * ms}},
		"a mailbox that is closed stays closed": {never(fdpass.ErrClosed), 0, fdpass.ErrClosed, 5000 * ms, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &scripted{began: time.Now(), says: tt.says}
				o, at := parkOne(t, nil, func(b *Balancer) {
					switch {
					case tt.says == nil:
					case tt.fills == 0:
						b.Table().Fill(0, w)
					default:
						time.AfterFunc(tt.fills, func() { b.Table().Fill(0, w) })
					}
				})
				if o.Err != tt.want || at != tt.at || o.Parked != at {
					t.Errorf("after %v: %v, parked %v; want %v after %v", at, o.Err, o.Parked, tt.want, tt.at)
				}
				if tt.asked != nil && !slices.Equal(w.asked, tt.asked) {
					t.Errorf("offered at %v, want %v", w.asked, tt.asked)
				}
			})
		})
	}
}

// TestWhenDown: with --when-down next the other slots are tried in the client's order when patience is over,
// unless its own worker has as many connections as it may.
func TestWhenDown(t *testing.T) {
	for name, tt := range map[string]struct {
		full  error // why slot 0's worker takes nothing; nil: the slot is empty
		slots []int // that have a worker
		want  int   // the slot whose worker has it; NoSlot: it is refused
	}{
		"the next one":                 {nil, []int{1, 2}, 1},
		"the one after it":             {nil, []int{2}, 2},
		"nobody":                       {nil, nil, NoSlot},
		"its own does not keep up":     {fdpass.ErrFull, []int{2}, 2},
		"its own has enough, so 503":   {fdpass.ErrLimit, []int{1, 2}, NoSlot},
		"its own is about to have one": {fdpass.ErrClosed, []int{1}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				workers := make(map[int]Worker)
				o, _ := parkOne(t, func(c *Config) { c.WhenDown = Next }, func(b *Balancer) {
					if tt.full != nil {
						b.Table().Fill(0, &scripted{says: func(time.Duration) error { return tt.full }})
					}
					for _, slot := range tt.slots {
						workers[slot] = &scripted{says: func(time.Duration) error { return nil }}
						b.Table().Fill(slot, workers[slot])
					}
				})
				if tt.want == NoSlot {
					if o.Worker != nil || o.Err == nil {
						t.Errorf("%+v", o)
					}
				} else if o.Worker != workers[tt.want] || o.Slot != tt.want {
					t.Errorf("slot %d has it, want %d", o.Slot, tt.want)
				}
			})
		})
	}
}

// TestSessionOwnerFirst: a parked connection whose session a worker keeps is tried there first, in whatever slot
// that is, and by its client when that worker takes none any more.
func TestSessionOwnerFirst(t *testing.T) {
	for err, want := range map[error]string{nil: "owner", fdpass.ErrClosed: "home"} {
		b, _ := New(DefaultConfig(), NewTable(1))
		owner := &scripted{says: func(time.Duration) error { return err }}
		home := &scripted{says: func(time.Duration) error { return nil }}
		b.Table().Fill(0, home)
		id := clientip.NameSession("a session")
		b.Table().Claim(id, owner, 0)
		reexec.Lock.RLock()
		_, failed := b.deliver(&connection{Handoff: fdpass.Handoff{FD: -1}, client: clientip.Client{Session: id}}, 0)
		reexec.Lock.RUnlock()
		got := "owner"
		if len(home.asked) > 0 {
			got = "home"
		}
		if failed != nil || got != want {
			t.Errorf("owner says %v: %v, %s has it, want %s", err, failed, got, want)
		}
	}
}

// TestReasonOfEach: every reason for which a connection ends has a word of its own kind, and those that clients cause
// have the answer that is theirs.
func TestReasonOfEach(t *testing.T) {
	for err, word := range reasons {
		o := Outcome{Err: err}
		if o.Reason() != word || !slices.Contains(Reasons(), word) {
			t.Errorf("%v: %q, want %q", err, o.Reason(), word)
		}
	}
	for _, o := range []Outcome{{}, {Err: fmt.Errorf("something new")}} {
		if want := map[bool]string{true: "", false: "other"}[o.Err == nil]; o.Reason() != want {
			t.Errorf("%v: %q, want %q", o.Err, o.Reason(), want)
		}
	}
}

// TestHalfForEachSlot: a stalled worker's clients have half of the room, and all of it where there is no other slot.
func TestHalfForEachSlot(t *testing.T) {
	for slots, want := range map[int]int{1: 10, 2: 5, 3: 5} {
		cfg := DefaultConfig()
		cfg.Strategy = inOrder{} // all clients belong to slot 0
		cfg.MaxParked, cfg.MaxRetries, cfg.Refuse = 10, 1000, RefuseClose
		refused := make(chan error, 1)
		cfg.OnOutcome = func(o Outcome) { refused <- o.Err }
		b, err := New(cfg, NewTable(slots))
		if err != nil {
			t.Fatal(err)
		}
		park := func() {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			reexec.Lock.RLock()
			defer reexec.Lock.RUnlock()
			b.park(connection{Handoff: fdpass.Handoff{FD: fd}})
		}
		for range want {
			park()
		}
		if n := b.ParkedBySlot()[0]; n != want {
			t.Errorf("%d slots: %d are parked, want %d", slots, n, want)
		}
		park()
		if err := fdtest.Receive(t, "the refusal of one too many", refused); err != errCrowded {
			t.Errorf("%d slots: %v, want %v", slots, err, errCrowded)
		}
		now, cancel := context.WithCancel(t.Context())
		cancel()
		go func() {
			for range refused { // those that were parked
			}
		}()
		b.Shutdown(now)
		close(refused)
	}
}
