package history_test

import (
	"bytes"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/cmd/chaos/history"
	"github.com/handfast/handfast/hash"
)

const second = time.Second

// forged is a history of a minute, to which tests add what they want.
type forged struct {
	history.History
	ids int
}

// forge is a history of two slots with a worker each, 10 and 11, in which nothing happens.
func forge() *forged {
	f := &forged{History: history.History{Terms: history.Terms{
		Slots: 2, Link: "native", Patience: 5 * second, Drain: 8 * second, Kill: 2 * second, Idle: second,
		Start: 6 * second, Leave: 8 * second, Answer: 10 * second, Slack: 2 * second,
	}}}
	f.process(10, 0, 1, 1, 0)
	f.process(11, 1, 1, 1, 0)
	f.deed(history.Deed{What: history.End}, 60, 61)
	return f
}

// at is a time in seconds.
func at(seconds float64) time.Duration { return time.Duration(seconds * float64(second)) }

func (f *forged) process(pid, slot, generation int, seen, gone float64) {
	f.Processes = append(f.Processes, history.Process{PID: pid, Slot: slot, Generation: generation, Seen: at(seen), Gone: at(gone)})
}

// gone says when a worker has.
func (f *forged) gone(pid int, seconds float64) {
	for i := range f.Processes {
		if f.Processes[i].PID == pid {
			f.Processes[i].Gone = at(seconds)
		}
	}
}

func (f *forged) deed(d history.Deed, from, to float64) {
	d.From, d.To = at(from), at(to)
	f.Deeds = append(f.Deeds, d)
}

func (f *forged) kill(pid int, seconds float64) {
	f.deed(history.Deed{What: history.Kill, PID: pid}, seconds, seconds)
	f.gone(pid, seconds)
}

func (f *forged) reload(generation int, from, to float64) {
	f.deed(history.Deed{What: history.Reload, Generation: generation}, from, to)
}

// client is an address of a slot, of n.
func client(slot, n int) netip.Addr {
	for addr := netip.MustParseAddr("127.0.0.2"); ; addr = addr.Next() {
		if hash.DefaultConfig().Key(addr).Slot(n) == slot {
			return addr
		}
	}
}

// visit is a connection of a client of a slot, of two, with requests.
func (f *forged) visit(slot int, requests ...history.Request) *history.Connection {
	f.ids++
	c := history.Connection{ID: f.ids, Key: client(slot, 2), Dial: requests[0].Sent, Connected: requests[0].Sent, Closed: requests[len(requests)-1].Done, Requests: requests}
	for i := range c.Requests {
		if c.Requests[i].PID > 0 {
			c.Requests[i].Client = c.Key
		}
	}
	f.Connections = append(f.Connections, c)
	return &f.Connections[len(f.Connections)-1]
}

// answer is that of a worker.
func answer(slot, pid, generation int, sent, done float64) history.Request {
	return history.Request{Path: "/", Sent: at(sent), Done: at(done), Read: 100, Status: http.StatusOK, Slot: slot, PID: pid, Generation: generation}
}

// none is a request without an answer, and refusal with 502.
func none(sent, done float64) history.Request {
	return history.Request{Path: "/", Sent: at(sent), Done: at(done), Err: "EOF"}
}

func refusal(sent, done float64) history.Request {
	return history.Request{Path: "/", Sent: at(sent), Done: at(done), Read: 100, Status: http.StatusBadGateway}
}

// replaced is a reload from 10 to 12 that gives slot 0 to worker 20 and slot 1 to worker 21; the old ones leave at 13.
func replaced(f *forged) {
	f.reload(2, 10, 12)
	f.process(20, 0, 2, 10.5, 0)
	f.process(21, 1, 2, 11, 0)
	f.gone(10, 13)
	f.gone(11, 13)
}

// histories are what can be and what cannot, for each rule.
var histories = []struct {
	name string
	rule history.Rule // empty: it can be
	make func(f *forged)
}{
	{"served", "", func(f *forged) { f.visit(0, answer(0, 10, 1, 2, 2.1), answer(0, 10, 1, 2.2, 2.3)) }},

	{"another slot", history.WrongSlot, func(f *forged) { f.visit(0, answer(1, 11, 1, 2, 2.1)) }},
	{"another slot, since there are others now", "", func(f *forged) {
		f.deed(history.Deed{What: history.Scale, Slots: 3}, 10, 11)
		f.process(12, 2, 1, 10.5, 0)
		c := f.visit(0, answer(2, 12, 1, 10.9, 10.95))
		c.Key = client(2, 3)
		c.Requests[0].Client = c.Key
	}},
	{"another slot, since there were others", history.WrongSlot, func(f *forged) {
		f.deed(history.Deed{What: history.Scale, Slots: 3}, 10, 11)
		f.process(12, 2, 1, 10.5, 0)
		slot, key := 0, client(2, 3)
		if hash.DefaultConfig().Key(key).Slot(2) == 1 {
			slot = 1
		}
		c := f.visit(0, answer(slot, 10+slot, 1, 11.1, 11.2))
		c.Key, c.Requests[0].Client = key, key
	}},

	{"another client", history.WrongPeer, func(f *forged) { f.visit(0, answer(0, 10, 1, 2, 2.1)).Requests[0].Client = client(1, 2) }},

	{"another worker on the same connection", history.OneWorker, func(f *forged) {
		replaced(f)
		f.visit(0, answer(0, 10, 1, 9, 9.1), answer(0, 20, 2, 12.5, 12.6))
	}},

	{"a stranger", history.Known, func(f *forged) { f.visit(0, answer(0, 99, 1, 2, 2.1)) }},
	{"a worker that was seen only then, and has the pid of a dead one", "", func(f *forged) {
		f.kill(10, 20)
		f.process(10, 0, 1, 30.1, 0)
		f.process(12, 0, 1, 20.1, 30)
		f.deed(history.Deed{What: history.Kill, PID: 12}, 29.9, 29.9)
		f.visit(0, answer(0, 10, 1, 30, 30.05))
	}},
	{"a worker that says another generation", history.Known, func(f *forged) { replaced(f); f.visit(0, answer(0, 10, 2, 10.6, 10.7)) }},

	{"the dead", history.Dead, func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 20.1, 0)
		f.visit(0, answer(0, 10, 1, 20.5, 20.6))
	}},
	{"the last words of the dead", "", func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 20.1, 0)
		f.visit(0, answer(0, 10, 1, 19.9, 20.6))
	}},

	{"the old generation behind a reload", history.Generation, func(f *forged) {
		replaced(f)
		f.visit(0, answer(0, 10, 1, 12.1, 12.2))
	}},
	{"the old generation, which had it before", "", func(f *forged) {
		replaced(f)
		f.visit(0, answer(0, 10, 1, 11.9, 12.2))
	}},
	{"the old generation behind a reload that has failed", "", func(f *forged) {
		f.deed(history.Deed{What: history.Reload, Generation: 2, Err: "does not come up"}, 10, 12)
		f.kill(11, 9)
		f.process(12, 1, 1, 9.1, 0)
		f.visit(0, answer(0, 10, 1, 12.1, 12.2))
	}},
	{"a generation before its reload", history.Generation, func(f *forged) {
		f.process(20, 0, 2, 9, 0)
		f.reload(2, 10, 12)
		f.gone(10, 13)
		f.gone(11, 13)
		f.visit(0, answer(0, 20, 2, 9.5, 9.6))
	}},

	{"cut", history.Cut, func(f *forged) { f.visit(0, answer(0, 10, 1, 2, 2.1), none(2.2, 2.3)) }},
	{"cut before an answer", history.Cut, func(f *forged) { f.visit(0, none(2, 2.1)) }},
	{"cut in the middle of an answer", history.Cut, func(f *forged) {
		r := answer(0, 10, 1, 2, 2.1)
		r.Err = "unexpected EOF"
		f.visit(0, r)
	}},
	{"cut, since its worker was killed", "", func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 20.1, 0)
		f.visit(0, answer(0, 10, 1, 19, 19.1), none(19.2, 20))
		f.visit(0, none(19.9, 20))
	}},
	{"cut, since another slot's worker was killed", history.Cut, func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 20.1, 0)
		f.visit(1, none(19.9, 20))
	}},
	{"cut before its worker was killed", history.Cut, func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 20.1, 0)
		f.visit(0, answer(0, 10, 1, 19, 19.1), none(19.2, 19.9))
	}},
	{"cut by a reload", history.Cut, func(f *forged) { replaced(f); f.visit(0, answer(0, 10, 1, 11, 11.1), none(11.3, 12)) }},
	{"cut by a reload in the middle of an answer", history.Cut, func(f *forged) {
		replaced(f)
		r := answer(0, 10, 1, 9, 12)
		r.Err = "unexpected EOF"
		f.visit(0, r)
	}},
	{"closed behind a reload, since nobody used it", "", func(f *forged) { replaced(f); f.visit(0, answer(0, 10, 1, 10, 10.1), none(12.3, 12.4)) }},
	{"closed without a reload", history.Cut, func(f *forged) { f.visit(0, answer(0, 10, 1, 10, 10.1), none(12.3, 12.4)) }},
	{"cut when the time of a drain is over", "", func(f *forged) {
		f.reload(2, 10, 12)
		f.process(20, 0, 2, 10.5, 0)
		f.process(21, 1, 2, 11, 0)
		f.gone(11, 13)
		f.gone(10, 20.1)
		r := answer(0, 10, 1, 9, 20)
		r.Takes, r.Err = at(20), "unexpected EOF"
		f.visit(0, r)
	}},
	{"refused by the kernel", history.Cut, func(f *forged) {
		c := f.visit(0, none(2, 2.1))
		c.Connected, c.Requests, c.Err = 0, nil, "connection refused"
	}},

	{"refused without a reason", history.Refused, func(f *forged) { f.visit(0, refusal(2, 7.1)) }},
	{"refused since the slot was empty", "", func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 26, 0)
		f.visit(0, refusal(20.1, 25.2))
	}},
	{"refused too soon", history.Refused, func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 26, 0)
		f.visit(0, refusal(20.1, 21))
	}},
	{"refused since another slot was empty", history.Refused, func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 26, 0)
		f.visit(1, refusal(20.1, 25.2))
	}},
	{"refused while others of the slot are served", history.Refused, func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 20.2, 0)
		f.visit(0, answer(0, 12, 1, 20.5, 20.6))
		f.visit(0, refusal(20.1, 25.2))
	}},
	{"another refusal", history.Refused, func(f *forged) {
		f.kill(10, 20)
		f.process(12, 0, 1, 26, 0)
		r := refusal(20.1, 25.2)
		r.Status = http.StatusServiceUnavailable
		f.visit(0, r)
	}},
	{"refused by accept in a foreign server, which died in a reload", "", func(f *forged) {
		f.Terms.Link = "any"
		f.kill(10, 10.5)
		f.deed(history.Deed{What: history.Reload, Generation: 2}, 10, 12)
		f.process(20, 0, 2, 10.4, 0)
		f.process(21, 1, 2, 11, 0)
		f.gone(11, 13)
		f.visit(0, refusal(10.3, 10.6))
	}},

	{"no answer", history.Answered, func(f *forged) {
		r := none(2, 50)
		r.Late = true
		f.visit(0, r)
	}},
	{"a late answer", history.Answered, func(f *forged) { f.visit(0, answer(0, 10, 1, 2, 20)) }},
	{"a late answer, since the worker stood still", "", func(f *forged) {
		f.deed(history.Deed{What: history.Stop, PID: 10}, 2, 20)
		f.visit(0, answer(0, 10, 1, 2, 20))
	}},
	{"a late answer, since another worker stood still", history.Answered, func(f *forged) {
		f.deed(history.Deed{What: history.Stop, PID: 11}, 2, 20)
		f.visit(0, answer(0, 10, 1, 2, 20))
	}},

	{"a worker that does not leave", history.Outlives, func(f *forged) { replaced(f); f.gone(10, 20.5) }},
	{"a worker that leaves with its last connection", "", func(f *forged) {
		replaced(f)
		f.visit(0, answer(0, 10, 1, 9, 18))
		f.gone(10, 21)
	}},
	{"a worker that outlives its time", history.Outlives, func(f *forged) {
		replaced(f)
		r := answer(0, 10, 1, 9, 30)
		r.Takes = at(30)
		f.visit(0, r)
		f.gone(10, 30)
	}},
	{"a worker that stood still in its time", "", func(f *forged) {
		replaced(f)
		f.deed(history.Deed{What: history.Stop, PID: 10}, 13, 20)
		f.gone(10, 21)
	}},
	{"a slot that was removed, and its worker stays", history.Outlives, func(f *forged) { f.deed(history.Deed{What: history.Scale, Slots: 1}, 10, 11) }},

	{"a slot that was removed while its worker was being started", "", func(f *forged) {
		f.kill(11, 9.9)
		f.deed(history.Deed{What: history.Scale, Slots: 1}, 10, 10.1)
		f.process(12, 1, 1, 10.2, 10.3)
	}},
	{"a worker that leaves late, since the master was being replaced", "", func(f *forged) {
		replaced(f)
		f.deed(history.Deed{What: history.Upgrade}, 12, 22)
		f.gone(10, 24)
	}},

	{"two in a slot", history.Two, func(f *forged) { f.process(12, 0, 1, 20, 0) }},
	{"two in a slot that was removed and is back", "", func(f *forged) {
		f.deed(history.Deed{What: history.Scale, Slots: 1}, 10, 11)
		f.deed(history.Deed{What: history.Scale, Slots: 2}, 12, 13)
		f.process(12, 1, 1, 12.5, 0)
		f.gone(11, 17)
	}},
	{"two in a slot whose worker is replaced", "", func(f *forged) {
		f.deed(history.Deed{What: history.Replace, Slot: 1}, 10, 11)
		f.process(12, 1, 1, 10.5, 0)
		f.gone(11, 17)
	}},

	{"a worker that ends by itself", history.ByItself, func(f *forged) { f.gone(10, 20); f.process(12, 0, 1, 20.1, 0) }},
	{"a worker that ends in an upgrade, and was ready", history.ByItself, func(f *forged) {
		f.deed(history.Deed{What: history.Upgrade}, 19, 21)
		f.visit(0, answer(0, 10, 1, 2, 2.1))
		f.gone(10, 20)
		f.process(12, 0, 1, 20.1, 0)
	}},
	{"a worker that ends in an upgrade, and was not ready", "", func(f *forged) {
		f.deed(history.Deed{What: history.Upgrade}, 19, 21)
		f.gone(10, 20)
		f.process(12, 0, 1, 20.1, 0)
	}},
	{"workers that die for want of memory", "", func(f *forged) {
		f.deed(history.Deed{What: history.Memory, Kills: 1}, 19, 21)
		f.gone(10, 20)
		f.process(12, 0, 1, 20.1, 0)
		f.visit(0, none(19.5, 20))
	}},

	{"cut by a worker that was killed before it was seen, for want of memory", "", func(f *forged) {
		f.deed(history.Deed{What: history.Memory, Kills: 1}, 19, 21)
		f.visit(0, none(19.5, 20))
	}},

	{"a reload that fails", history.DeedFails, func(f *forged) {
		f.deed(history.Deed{What: history.Reload, Generation: 2, Err: "does not come up"}, 10, 12)
	}},
	{"a reload of what is broken", history.DeedFails, func(f *forged) {
		f.deed(history.Deed{What: history.Broken}, 9, 13)
		replaced(f)
	}},
	{"an end that is none", history.DeedFails, func(f *forged) { f.Deeds[0].Err = "does not stop" }},

	{"a calm", "", func(f *forged) {
		f.deed(history.Deed{What: history.Calm}, 40, 40)
		f.visit(0, answer(0, 10, 1, 50, 50.1))
	}},
	{"a calm with two in a slot", history.NotCalm, func(f *forged) {
		f.deed(history.Deed{What: history.Calm}, 40, 40)
		f.process(12, 0, 1, 39.9, 0)
		f.visit(0, answer(0, 10, 1, 50, 50.1))
		f.visit(0, answer(0, 12, 1, 51, 51.1))
	}},
	{"a calm with a refusal", history.NotCalm, func(f *forged) {
		f.kill(10, 39)
		f.deed(history.Deed{What: history.Calm}, 40, 40)
		f.visit(0, refusal(47, 52.1))
	}},
}

// TestCheck: what can be is found to be possible, and what cannot by the rule that it is against.
func TestCheck(t *testing.T) {
	tried := make(map[history.Rule]bool)
	for _, tt := range histories {
		t.Run(tt.name, func(t *testing.T) {
			f := forge()
			tt.make(f)
			faults := history.Check(&f.History)
			tried[tt.rule] = true
			isOne := slices.ContainsFunc(faults, func(fault history.Fault) bool { return fault.Rule == tt.rule })
			if tt.rule == "" && len(faults) > 0 || tt.rule != "" && !isOne {
				t.Errorf("found %v, want %q", faults, tt.rule)
			}
		})
	}
	for _, rule := range history.Rules {
		if !tried[rule] {
			t.Errorf("no history is against the rule %q", rule)
		}
	}
}

// TestWrite: what is written is read again as it was.
func TestWrite(t *testing.T) {
	f := forge()
	replaced(f)
	f.visit(0, answer(0, 10, 1, 2, 2.1), none(2.2, 2.3))
	var text bytes.Buffer
	if err := f.Write(&text); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(text.String(), "\n"); lines != 1+len(f.Deeds)+len(f.Processes)+len(f.Connections) {
		t.Errorf("%d lines", lines)
	}
	again, err := history.Read(&text)
	if err != nil || !reflect.DeepEqual(*again, f.History) {
		t.Errorf("read: %+v, %v", again, err)
	}
}
