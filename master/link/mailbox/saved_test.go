package mailbox

import (
	"encoding/json"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

func TestGolden(t *testing.T) {
	reexectest.Golden(t, part, saved{
		Ours: 7, Theirs: 8, Offered: true, Listens: true, Drained: true, Left: "it asked for that",
		Report:         &savedReport{Open: 3, Accepted: 9, Passed: 4},
		MaxConnections: 100, Given: 12, Answers: true, Owes: true,
		HandsBack: true, Rules: "HANDFAST_SEED=1", Has: 5,
		Passes: true, Passage: &savedPassage{Entrance: 9, Exit: 10, Told: true},
	})
}

// TestSaveRestore: a mailbox that was restored is saved as it was.
func TestSaveRestore(t *testing.T) {
	slots := new(Slots)
	slots.Set(3)
	requests := Requests{MaxConnections: 100, Pings: true, HandBack: new(back).take, Slots: slots, Rules: "rules"}
	m, err := Open(nil, requests, fdpass.CloseHandoffs)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	close(m.ready)
	m.given.Store(12)
	m.answers, m.limited, m.accepts, m.offered, m.handsBack = true, true, true, true, true
	m.has.Store(5)
	m.report.Store(&fdpass.Report{Open: 3, Accepted: 9})
	b := reexec.NewBundle("before")
	text, err := m.Save(b)
	if err != nil {
		t.Fatal(err)
	}
	next := reexec.NewBundle("before")
	s := new(saved)
	if err := next.Unseal(text.(json.RawMessage), part, s); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []*int{&s.Ours, &s.Theirs} { // the next program is another process
		if *fd, err = unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		next.Keep(*fd)
	}
	sealed, err := reexec.Seal(part, s)
	if err != nil {
		t.Fatal(err)
	}
	restored, err := Restore(next, sealed, m.requests, fdpass.CloseHandoffs)
	if err != nil {
		t.Fatal(err)
	}
	restored.Resume()
	defer restored.Close()
	again, err := restored.Save(reexec.NewBundle("now"))
	if err != nil {
		t.Fatal(err)
	}
	got := new(saved)
	if err := next.Unseal(again.(json.RawMessage), part, got); err != nil {
		t.Fatal(err)
	}
	if s.MaxConnections != 100 || !s.Answers || !s.Listens || !s.HandsBack || s.Rules != "rules" || s.Has != 5 {
		t.Errorf("saved %+v", s)
	}
	var told fdpass.Message
	if err := restored.theirs.Receive(&told); err != nil || told.Slots != 3 {
		t.Errorf("the worker is told %+v, %v", told, err)
	}
	got.Ours, got.Theirs = s.Ours, s.Theirs
	if !reflect.DeepEqual(got, s) {
		t.Errorf("saved again %+v, want %+v", got, s)
	}
}

// TestRulesChanged: a worker that was told other rules of placing clients than the program has now is to hand nothing back, also
// by the program after that.
func TestRulesChanged(t *testing.T) {
	slots := new(Slots)
	slots.Set(3)
	m, err := Open(nil, Requests{HandBack: new(back).take, Slots: slots, Rules: "now"}, fdpass.CloseHandoffs)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	m.handsBack, m.rulesChanged = true, true
	close(m.ready)
	m.beginHandBack()
	var told fdpass.Message
	if err := m.theirs.Receive(&told); err != nil || told.Type != fdpass.TypeSlots || told.Slots != 0 {
		t.Errorf("the worker is told %+v, %v", told, err)
	}
	text, err := m.Save(reexec.NewBundle("now"))
	s := new(saved)
	if err != nil || reexec.NewBundle("now").Unseal(text.(json.RawMessage), part, s) != nil || s.Rules == "now" {
		t.Errorf("saved %+v, %v", s, err)
	}
}
