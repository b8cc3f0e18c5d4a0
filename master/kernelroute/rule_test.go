package kernelroute

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// TestRule walks every combination of what the rule looks at. Each must be in exactly one row of the table that its
// comment shows, and the rule must say what is written there.
func TestRule(t *testing.T) {
	const no, yes, any = 1, 2, 3 // sets of answers
	rows := []struct {
		slot                  slotState
		accepts, leased, used int
		handsOff, not         action
	}{
		{slotFilled, yes, any, any, leaveAlone, leaveAlone},
		{slotFilled, no, any, any, acceptNow, refuseNow},
		{slotEmpty, any, any, any, acceptLater, refuseOverdue},
		{slotNone, any, yes, yes, acceptLater, refuseOverdue},
		{slotNone, any, no, yes, acceptNow, refuseNow},
		{slotNone, any, any, no, leaveAlone, leaveAlone},
	}
	bools := []bool{false, true}
	isIn := func(answer bool, set int) bool { return answer && set&yes != 0 || !answer && set&no != 0 }
	walked := 0
	for _, slot := range []slotState{slotFilled, slotEmpty, slotNone} {
		for _, accepts := range bools {
			for _, handsOff := range bools {
				for _, leased := range bools {
					for _, used := range bools {
						walked++
						s := situation{slot, accepts, handsOff, leased, used}
						var found []int
						for i, r := range rows {
							if r.slot == slot && isIn(accepts, r.accepts) && isIn(leased, r.leased) && isIn(used, r.used) {
								found = append(found, i)
							}
						}
						if len(found) != 1 {
							t.Errorf("%+v is in rows %v, want one", s, found)
							continue
						}
						want := rows[found[0]].not
						if handsOff {
							want = rows[found[0]].handsOff
						}
						if got := rule(s); got != want {
							t.Errorf("%+v: %v, want %v", s, got, want)
						}
					}
				}
			}
		}
	}
	if walked != 3*2*2*2*2 {
		t.Errorf("%d combinations", walked)
	}
}

// TestRulePromises: what the rule is for, whatever else is so.
func TestRulePromises(t *testing.T) {
	for i := range 3 * 16 {
		s := situation{slotState(i / 16), i&1 != 0, i&2 != 0, i&4 != 0, i&8 != 0}
		a := rule(s)
		if !s.handsOff && slices.Contains([]action{acceptNow, acceptLater}, a) {
			t.Errorf("%+v: %v makes a blocking listener non-blocking", s, a)
		}
		if s.handsOff && slices.Contains([]action{refuseNow, refuseOverdue}, a) {
			t.Errorf("%+v: %v refuses who could be handed off", s, a)
		}
		if s.slot != slotNone && !(s.slot == slotFilled && s.accepts) && a == leaveAlone {
			t.Errorf("%+v: clients of a slot wait for ever", s)
		}
		if s.used && !s.leased && s.slot == slotNone && a == leaveAlone {
			t.Errorf("%+v: who waits at a listener that nobody has waits for ever", s)
		}
		if text := fmt.Sprint(s.slot, a); text == "" {
			t.Error("no words")
		}
	}
}

// TestBlockingAndHandsOff: the two exclude each other, and New says so.
func TestBlockingAndHandsOff(t *testing.T) {
	if _, err := New(Config{HandsOff: true, Blocking: true}); !errors.Is(err, errBlocking) {
		t.Error(err)
	}
}
