package supervisor

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// leftBehind is what a program may leave: a worker in its slot on probation, the one that stands by, one that
// drains and has left its slot, and one that was ready never and is stopping.
func leftBehind() saved {
	at := func(second int) time.Time { return time.Date(2026, 11, 26, 12, 0, second, 5_000_000, time.UTC) }
	return saved{
		Generation: 3, Published: 2, Wanted: 2,
		LastReload: &savedReload{ReloadStatus: ReloadStatus{Generation: 3, Done: 1, Slots: 2, Probation: at(9), Began: at(2), Ended: at(3)}, Err: "slot 1 is not ready"},
		Slots: []savedSlot{
			{Generation: 3, Failures: 1, Restarts: 4, RespawnAt: at(8), LastEnd: &End{PID: 7, Generation: 2, At: at(1), Why: "exit status 1", LastWords: "out of luck"}},
			{Generation: 2},
		},
		Workers: []savedWorker{
			{Seat: Seat{0, 2, 3}, PID: 4194303, Current: true, State: Serving, Since: at(2), Started: at(1), ReadyAt: at(2), Deadline: at(9), Link: json.RawMessage(`"new"`), Output: json.RawMessage(`"terminal"`)},
			{Seat: Seat{0, 2, 2}, PID: 4194302, Standby: true, State: Standby, Since: at(2), Started: at(1), ReadyAt: at(2), Deadline: at(9), Link: json.RawMessage(`"old"`), Output: json.RawMessage(`null`)},
			{Seat: Seat{2, 3, 1}, PID: 4194301, Removed: true, State: Draining, Unasked: true, Since: at(2), Started: at(1), ReadyAt: at(2), Link: json.RawMessage(`"gone"`), Output: json.RawMessage(`null`)},
			{Seat: Seat{1, 2, 2}, PID: 4194300, State: Stopping, Ended: true, Since: at(2), Started: at(1), Link: json.RawMessage(`null`), Output: json.RawMessage(`null`)},
		},
	}
}

func TestGolden(t *testing.T) { reexectest.Golden(t, part, leftBehind()) }

// savedLink and savedOutput are restored from a text, and save the same.
type (
	savedLink struct {
		noLink
		text string
	}
	savedOutput struct {
		inherited
		text string
	}
)

func (s savedLink) Save(*reexec.Bundle) (any, error)   { return s.text, nil }
func (s savedOutput) Save(*reexec.Bundle) (any, error) { return s.text, nil }

// restored returns a supervisor of what a bundle has, that does nothing yet.
func restored(b *reexec.Bundle) (*Supervisor, error) {
	cfg := DefaultConfig()
	cfg.Command, cfg.Workers, cfg.MaxWorkers, cfg.Resume, cfg.Slots = []string{"true"}, 2, 1024, b, nobody{}
	cfg.NewLink = func(Seat) (Link, error) { panic("none is to start") }
	cfg.RestoreLink = func(_ Seat, _ int, text json.RawMessage) (Link, error) {
		var s savedLink
		return s, json.Unmarshal(text, &s.text)
	}
	cfg.RestoreOutput = func(_ Seat, _ int, text json.RawMessage) (Output, error) {
		var s savedOutput
		return s, json.Unmarshal(text, &s.text)
	}
	return New(cfg)
}

// lingering is a worker that lingers, which earlier programs of the same form do not know, and refuse.
func lingering() savedWorker {
	w := leftBehind().Workers[1]
	w.PID, w.Standby, w.State, w.Generation = 4194299, false, Lingering, 1
	return w
}

// TestSaveRestore: what is restored is saved again as it was.
func TestSaveRestore(t *testing.T) {
	b, want := reexec.NewBundle("before"), leftBehind()
	want.Workers = append(want.Workers, lingering())
	if err := b.Put(part, want); err != nil {
		t.Fatal(err)
	}
	s, err := restored(b)
	if err != nil {
		t.Fatal(err)
	}
	next := reexec.NewBundle("now")
	if err := s.Save(next); err != nil {
		t.Fatal(err)
	}
	var got saved
	if err := next.Get(part, &got); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got.Workers, func(a, b savedWorker) int { return b.PID - a.PID })
	if !reflect.DeepEqual(got, want) {
		t.Errorf("saved again\n%+v\nwant\n%+v", got, want)
	}
}

// TestRestoreImpossible: what no program can have left is an error, before anything is signalled.
func TestRestoreImpossible(t *testing.T) {
	for name, change := range map[string]func(*saved){
		"no slots":               func(s *saved) { s.Slots = nil },
		"more in use than there": func(s *saved) { s.Published = 3 },
		"none in use":            func(s *saved) { s.Published = 0 },
		"no generation":          func(s *saved) { s.Generation = 0 },
		"fewer than no restarts": func(s *saved) { s.Slots[0].Restarts = -1 },
		"init":                   func(s *saved) { s.Workers[0].PID = 1 },
		"everybody":              func(s *saved) { s.Workers[0].PID = -1 },
		"our own group":          func(s *saved) { s.Workers[0].PID = 0 },
		"no pid":                 func(s *saved) { s.Workers[0].PID = 1 << 30 },
		"one process twice":      func(s *saved) { s.Workers[0].PID = s.Workers[1].PID },
		"two in a slot": func(s *saved) {
			s.Workers[3].Current, s.Workers[3].Slot, s.Workers[3].Link = true, 0, json.RawMessage(`""`)
		},
		"without a link":    func(s *saved) { s.Workers[0].Link = nil },
		"in a removed slot": func(s *saved) { s.Workers[0].Removed = true },
		"in no slot":        func(s *saved) { s.Workers[0].Slot = -1 },
		"lingering in its slot": func(s *saved) {
			s.Workers[0].State = Lingering
		},
		"lingering for ever": func(s *saved) { s.Workers[4].Deadline = time.Time{} },
		"lingering, no link": func(s *saved) { s.Workers[4].Link = nil },
		"starting":           func(s *saved) { s.Workers[0].State = Starting },
		"too many slots":     func(s *saved) { s.Slots = make([]savedSlot, 1<<12) },
	} {
		state, b := leftBehind(), reexec.NewBundle("before")
		state.Workers = append(state.Workers, lingering())
		change(&state)
		if err := b.Put(part, state); err != nil {
			t.Fatal(err)
		}
		if _, err := restored(b); err == nil {
			t.Errorf("%s: it is restored", name)
		}
	}
	for text, want := range map[string]string{`"State":7`: "unmarshal", `"State":"asleep"`: `"asleep" is no state of a worker`} {
		sealed := strings.Replace(string(reexectest.Text(t, part)), `"State":"serving"`, text, 1)
		if err := reexec.NewBundle("before").Unseal(json.RawMessage(sealed), part, new(saved)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// FuzzRestore: whatever a bundle says of workers, it is refused, or is what it can be.
func FuzzRestore(f *testing.F) {
	f.Add([]byte(reexectest.Text(f, part)))
	f.Fuzz(func(t *testing.T, text []byte) {
		var state saved
		b := reexec.NewBundle("before")
		if b.Unseal(json.RawMessage(text), part, &state) != nil || b.Put(part, state) != nil {
			return
		}
		s, err := restored(b)
		if err != nil {
			return
		}
		for w := range s.workers {
			if pid := w.pid(); pid <= 1 || w.seat.Slot < 0 || (w.slot.current == w || w.slot.standby == w) && w.link == Link(noLink{}) {
				t.Errorf("%+v", w)
			}
		}
		if err := s.Save(reexec.NewBundle("now")); err != nil {
			t.Error(err)
		}
	})
}
