package mailbox

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/reexec"
)

// group are workers of slots that pass connections to each other.
type group struct {
	t     *testing.T
	slots *Slots
	back  *back // what comes to the master
}

func newGroup(t *testing.T, room int) *group {
	t.Helper()
	fdtest.NoLeaks(t)
	g := &group{t, &Slots{Passes: true}, &back{room: room}}
	g.slots.Set(4)
	t.Cleanup(func() { fdpass.CloseHandoffs(g.back.all) })
	return g
}

// open is openWith for a worker that is ready, and has said these before.
func (g *group) open(says ...fdpass.Type) (*Mailbox, *worker) {
	g.t.Helper()
	m, w, _ := openWith(g.t, nil, Requests{HandBack: g.back.take, Slots: g.slots, Rules: "rules"})
	for _, t := range says {
		w.say(t)
	}
	w.say(fdpass.TypeReady)
	fdtest.Receive(g.t, "ready", m.Ready())
	return m, w
}

// seat puts a worker into a slot that passes connections.
func (g *group) seat(slot int) (*Mailbox, *worker) {
	g.t.Helper()
	m, w := g.open(fdpass.TypeHandBack, fdpass.TypePass)
	g.slots.Seat(slot, m)
	return m, w
}

// ends returns what a worker hears of passages, by slot, until it has heard of so many.
func (w *worker) ends(n int) map[int]*fdpass.Conn {
	w.t.Helper()
	ends := make(map[int]*fdpass.Conn)
	for len(ends) < n {
		var m fdpass.Message
		if err := w.Receive(&m); err != nil || m.Type != fdpass.TypePass && m.Type != fdpass.TypeSlots {
			w.t.Fatalf("worker received %+v, error %v", m, err)
		}
		for _, h := range m.Handoffs {
			end, err := fdpass.NewConn(os.NewFile(uintptr(h.FD), "end"))
			fdtest.Check(w.t, err)
			w.t.Cleanup(func() { end.Close() })
			if ends[h.PassageSlot()] != nil {
				w.t.Errorf("worker hears twice of the passage of slot %d", h.PassageSlot())
			}
			ends[h.PassageSlot()] = end
		}
	}
	return ends
}

// TestPassages: each worker has its own exit and the others' entrances, also those of a slot's next worker, and of one that comes back.
func TestPassages(t *testing.T) {
	g := newGroup(t, 0)
	var boxes []*Mailbox
	var workers []*worker
	for slot := range 3 {
		m, w := g.seat(slot)
		boxes, workers = append(boxes, m), append(workers, w)
	}
	var ends []map[int]*fdpass.Conn
	for _, w := range workers {
		ends = append(ends, w.ends(3))
	}
	sent, _ := connect(t, 1)
	defer fdpass.CloseHandoffs(sent)
	passes := func(entrance, exit *fdpass.Conn) {
		t.Helper()
		fdtest.Check(t, entrance.TrySend(fdpass.TypePass, sent))
		var m fdpass.Message
		if err := exit.Receive(&m); err != nil || len(m.Handoffs) != 1 || m.Handoffs[0].Client != sent[0].Client {
			t.Errorf("received %+v, error %v", m, err)
		}
		fdpass.CloseHandoffs(m.Handoffs)
	}
	for from := range 3 {
		for to := range 3 {
			if from != to {
				passes(ends[from][to], ends[to][to])
			}
		}
	}
	_, next := g.seat(1)
	exit := next.ends(3)[1]
	for _, from := range []int{0, 2} {
		passes(workers[from].ends(1)[1], exit)
		passes(ends[from][1], ends[1][1]) // the other one may come back
	}
	g.slots.Seat(1, boxes[1])
	passes(workers[0].ends(1)[1], ends[1][1])
	boxes[1].Drain()
	if err := ends[0][1].TrySend(fdpass.TypePass, sent); err != fdpass.ErrClosed {
		t.Errorf("one passes to a worker that drains: %v", err)
	}
	var m fdpass.Message
	if err := ends[1][1].Receive(&m); err != io.EOF {
		t.Errorf("it received %+v, %v", m, err)
	}
}

// TestPassagesToldLate: a worker that did not keep up when it came to its slot, and was replaced before it was told of its exit, is told when it comes back.
func TestPassagesToldLate(t *testing.T) {
	g := newGroup(t, 0)
	m, w := g.open(fdpass.TypeHandBack, fdpass.TypePass)
	w.hears(4)
	for err := error(nil); err == nil; {
		err = m.ours.TrySend(fdpass.TypePing, nil)
	}
	g.slots.Seat(0, m)
	g.seat(1)
	g.seat(0)
	var got fdpass.Message
	for got.Type != fdpass.TypePass {
		fdtest.Check(t, w.Receive(&got))
	}
	if len(got.Handoffs) != 1 || got.Handoffs[0].PassageSlot() != 1 {
		t.Errorf("it hears %+v", got)
	}
	fdpass.CloseHandoffs(got.Handoffs)
	g.slots.Seat(0, m)
	if w.ends(2)[0] == nil {
		t.Error("it was not told of its exit")
	}
}

// TestNoPassages: nobody passes to a worker that has not said that it takes that, or where the master has to know, or in a slot beyond the limit.
func TestNoPassages(t *testing.T) {
	g := newGroup(t, 0)
	none := func(slot int, says ...fdpass.Type) {
		t.Helper()
		m, w := g.open(says...)
		g.slots.Seat(slot, m)
		g.slots.Set(7)
		if m.passage.there {
			t.Errorf("slot %d has a passage, whose worker says %v", slot, says)
		}
		if len(says) == 2 {
			w.hears(4)
			w.hears(7)
		}
		g.slots.Set(4)
	}
	none(0, fdpass.TypeHandBack)
	none(1, fdpass.TypePass)
	none(fdpass.MaxPassages, fdpass.TypeHandBack, fdpass.TypePass)
	g.slots.Passes = false
	none(2, fdpass.TypeHandBack, fdpass.TypePass)
}

// TestPassedToTheDead: what was passed to a worker that has ended, or leaves, goes back to the master, whatever else is there.
func TestPassedToTheDead(t *testing.T) {
	for name, end := range map[string]func(m *Mailbox, w *worker){
		"ended": func(m *Mailbox, _ *worker) { m.Close() },
		"leaves": func(m *Mailbox, w *worker) {
			w.say(fdpass.TypeLeave)
			fdtest.Receive(t, "its end", m.Left())
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, 10)
			sent, _ := connect(t, 4)
			g.back.foreign = sent[2].Client
			_, w := g.seat(0)
			m, dead := g.seat(1)
			entrance := w.ends(2)[1]
			fdtest.Check(t, entrance.TrySend(fdpass.TypePass, sent[:1]))
			fdtest.Check(t, entrance.TrySend(fdpass.TypePing, nil))
			fdtest.Check(t, entrance.TrySend(fdpass.TypeHandoff, sent[:1]))
			raw, err := entrance.SyscallConn()
			fdtest.Check(t, err)
			raw.Control(func(fd uintptr) { fdtest.Check(t, unix.Sendmsg(int(fd), []byte("hello"), nil, nil, 0)) })
			fdtest.Check(t, entrance.TrySend(fdpass.TypePass, sent[1:]))
			fdpass.CloseHandoffs(sent)
			end(m, dead)
			g.back.want(t, slices.Delete(sent, 2, 3))
			if err := entrance.TrySend(fdpass.TypePass, nil); err != fdpass.ErrClosed {
				t.Errorf("one passes to it: %v", err)
			}
		})
	}
}

// TestPassedTooMuch: what another worker has sent into a passage and does not fit holds nobody up for ever.
func TestPassedTooMuch(t *testing.T) {
	g := newGroup(t, 0)
	m, _ := g.seat(0)
	entrance := m.passage.entrance
	fdtest.Check(t, unix.Sendmsg(entrance, []byte("hello"), unix.UnixRights(slices.Repeat([]int{entrance}, 253)...), nil, 0))
	m.endFlow()
	exit := m.openExit()
	var before unix.Rlimit
	fdtest.Check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	next, err := unix.Dup(entrance)
	fdtest.Check(t, err)
	unix.Close(next)
	fdtest.Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next + fdlimit.Reserve + 8), Max: before.Max}))
	emptied := m.empty(exit, 2, func(*fdpass.Message) { t.Error("it was received") })
	fdtest.Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
	if emptied {
		t.Error("all of it was received")
	}
	m.closePassage(exit, emptied)
}

// TestPassedOn: a worker is not to blame for what others pass to it, and sends that to the master.
func TestPassedOn(t *testing.T) {
	g := newGroup(t, 1)
	m, w := g.seat(0)
	sent, _ := connect(t, 2)
	w.say(fdpass.TypePass, sent...)
	w.say(fdpass.TypePass, sent[1])
	w.say(fdpass.TypeHandBack, sent[1])
	fdpass.CloseHandoffs(sent)
	fdtest.Receive(t, "its end", m.Left()) // since it has never been given anything
	g.back.want(t, sent[:1])

	other, w := g.open(fdpass.TypePass)
	sent, _ = connect(t, 1)
	w.say(fdpass.TypePass, sent...)
	fdpass.CloseHandoffs(sent)
	fdtest.Receive(t, "the end of one that does not hand back", other.Left())
	if n := g.back.looked.Load(); n != 0 {
		t.Errorf("it has looked at %d", n)
	}

	other, w = g.open(fdpass.TypeHandBack, fdpass.TypePass)
	sent, _ = connect(t, 1)
	w.say(fdpass.TypePass, sent...)
	fdpass.CloseHandoffs(sent)
	fdtest.Receive(t, "the end of one without a passage", other.Left())
}

// TestPassedThenHandedBack: a worker may hand back what another one was given, but no more than all of them were.
func TestPassedThenHandedBack(t *testing.T) {
	g := newGroup(t, 10)
	from, _ := g.seat(0)
	m, w := g.seat(1)
	sent, _ := connect(t, 3)
	deliver(t, from, sent[:2])
	for i := range sent {
		w.say(fdpass.TypeHandBack, sent[2])
		g.back.want(t, []fdpass.Handoff{sent[2], sent[2]}[:min(i+1, 2)])
	}
	fdtest.Receive(t, "its end", m.Left())
	if !errors.Is(m.Err(), fdpass.ErrMalformed) {
		t.Error(m.Err())
	}
	fdpass.CloseHandoffs(sent[2:])
}

// TestPassageUpgradeMidway: the next program gets a passage that is being emptied, too, and nothing of what it gets is closed meanwhile.
func TestPassageUpgradeMidway(t *testing.T) {
	g := newGroup(t, 5)
	_, from := g.seat(0)
	m, w := g.seat(1)
	entrance := from.ends(2)[1]
	w.ends(2)
	sent, _ := connect(t, 2)
	fdtest.Check(t, entrance.TrySend(fdpass.TypePass, sent[:1]))
	fdtest.Check(t, entrance.TrySend(fdpass.TypePass, sent[1:]))
	fdpass.CloseHandoffs(sent)
	g.back.midway = func() {
		text, err := m.Save(reexec.NewBundle("before"))
		fdtest.Check(t, err)
		var s struct{ State struct{ State saved } }
		fdtest.Check(t, json.Unmarshal(text.(json.RawMessage), &s))
		if p := s.State.State.Passage; p == nil || !isOpen(p.Entrance) || !isOpen(p.Exit) {
			t.Errorf("saved: %+v", p)
		}
	}
	m.Close()
	g.back.want(t, sent)

	g.back.midway = nil
	m, _ = g.seat(2)
	m.endFlow()
	p := m.passage
	reexec.Lock.Lock() // as while it is saved
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		m.closePassage(m.openExit(), true)
	}()
	select {
	case <-taken:
		t.Error("it is closed")
	case <-time.After(10 * time.Millisecond): // which may show nothing, and fails nothing that is right
	}
	if !isOpen(p.entrance) || !isOpen(p.exit) {
		t.Error("an end is closed")
	}
	reexec.Lock.Unlock()
	fdtest.Receive(t, "its end", taken)
}

// TestPassageUpgrade: the next program goes on with a passage, or ends it if workers are not to pass any more, and what is in it is not lost.
func TestPassageUpgrade(t *testing.T) {
	for name, passes := range map[string]bool{"passes": true, "no more": false} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, 5)
			_, from := g.seat(0)
			m, w := g.seat(1)
			entrance, exit := from.ends(2)[1], w.ends(2)[1]
			sent, _ := connect(t, 2)
			fdtest.Check(t, entrance.TrySend(fdpass.TypePass, sent[:1]))
			b := reexec.NewBundle("before")
			text, err := m.Save(b)
			fdtest.Check(t, err)
			next := reexec.NewBundle("before")
			var s saved
			fdtest.Check(t, next.Unseal(text.(json.RawMessage), part, &s))
			for _, fd := range []*int{&s.Ours, &s.Theirs, &s.Passage.Entrance, &s.Passage.Exit} { // the next program is another process
				*fd, err = unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, 3)
				fdtest.Check(t, err)
				next.Keep(*fd)
			}
			sealed, err := reexec.Seal(part, s)
			fdtest.Check(t, err)
			requests := m.requests
			requests.Slots = &Slots{Passes: passes}
			requests.Slots.Set(4)
			restored, err := Restore(next, sealed, requests, fdpass.CloseHandoffs)
			fdtest.Check(t, err)
			restored.Resume()
			requests.Slots.Seat(1, restored)
			err = entrance.TrySend(fdpass.TypePass, sent[1:])
			fdpass.CloseHandoffs(sent)
			if passes && err != nil || !passes && err != fdpass.ErrClosed {
				t.Errorf("passing behind the upgrade: %v", err)
			}
			if passes {
				var got fdpass.Message
				fdtest.Check(t, exit.Receive(&got)) // as it did before
				fdpass.CloseHandoffs(got.Handoffs)
				sent = sent[1:]
			} else {
				sent = sent[:1]
			}
			restored.Close()
			g.back.want(t, sent)
		})
	}
}
