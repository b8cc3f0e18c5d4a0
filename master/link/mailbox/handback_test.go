package mailbox

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// back collects what is handed back, and takes no more than room.
type back struct {
	returned
	room    int
	foreign netip.AddrPort // what it does not take
	looked  atomic.Int32   // how many its worker has looked at
	midway  func()         // called before
}

func (b *back) take(_ *Mailbox, looked bool, hs []fdpass.Handoff) (n int, err error) {
	if looked {
		b.looked.Add(int32(len(hs)))
	}
	if b.midway != nil {
		b.midway()
	}
	if n = len(hs); n > b.room {
		n, err = b.room, errors.New("no connection of ours")
	}
	if i := slices.Index(clientsOf(hs), b.foreign); i >= 0 {
		n, err = i, errors.New("no connection of ours")
	}
	b.room -= n
	b.readmit(hs[:n])
	return n, err
}

// openBack is open for a worker that may hand connections back, and says so if it is to.
func openBack(t *testing.T, says bool, room int) (*Mailbox, *worker, *back, *Slots) {
	t.Helper()
	fdtest.NoLeaks(t)
	b, slots := &back{room: room}, new(Slots)
	slots.Set(4)
	m, w, _ := openWith(t, nil, Requests{HandBack: b.take, Slots: slots, Rules: "rules"})
	t.Cleanup(func() { fdpass.CloseHandoffs(b.all) })
	if says {
		w.say(fdpass.TypeHandBack)
		w.SendDetails()
	}
	w.say(fdpass.TypeReady)
	fdtest.Receive(t, "ready", m.Ready())
	return m, w, b, slots
}

// hears fails the test unless the next message says how many slots there are.
func (w *worker) hears(slots int) {
	w.t.Helper()
	var m fdpass.Message
	if err := w.Receive(&m); err != nil || m.Type != fdpass.TypeSlots || m.Slots != slots {
		w.t.Fatalf("worker received %+v, error %v, want %d slots", m, err, slots)
	}
}

// TestHandBack: a worker that has said that it hands connections back hears how many slots there are, and gets details; what it
// hands back arrives, also when it drains.
func TestHandBack(t *testing.T) {
	m, w, b, slots := openBack(t, true, 10)
	if !m.Looks() || m.Drains() {
		t.Errorf("looks: %v, drains: %v", m.Looks(), m.Drains())
	}
	w.hears(4)
	slots.Set(5)
	w.hears(5)
	sent, _ := connect(t, 2)
	sent[0].Details = "details"
	deliver(t, m, sent)
	for i := range sent {
		got := w.receive()
		if len(got) != 1 || got[0].Details != sent[i].Details {
			t.Fatalf("received %+v, want details %q", got, sent[i].Details)
		}
		w.say(fdpass.TypeHandBack, got...)
		fdpass.CloseHandoffs(got)
		b.want(t, sent[:i+1])
		if i == 0 {
			m.Drain()
		}
	}
	if b.all[0].Details != "details" {
		t.Errorf("came back with details %q", b.all[0].Details)
	}
	slots.Set(6) // behind the end of file: nobody hears it
}

// TestHandBackUnasked: a worker that has not said that it hands connections back is told nothing, gets no details, and its
// link ends if it does.
func TestHandBackUnasked(t *testing.T) {
	m, w, b, _ := openBack(t, false, 10)
	sent, _ := connect(t, 1)
	sent[0].Details = "details"
	deliver(t, m, sent)
	got := w.receive()
	if got[0].Details != "" {
		t.Errorf("received %+v", got)
	}
	w.say(fdpass.TypeHandBack, got...)
	fdpass.CloseHandoffs(got)
	fdtest.Receive(t, "its end", m.Left())
	if !errors.Is(m.Err(), fdpass.ErrMalformed) || len(b.clients()) > 0 {
		t.Errorf("left: %v; handed back: %v", m.Err(), b.clients())
	}
}

// TestHandBackUnwanted: a master that takes nothing back does not end the link of a worker that says it would hand back.
func TestHandBackUnwanted(t *testing.T) {
	m, w, r := open(t)
	w.say(fdpass.TypeHandBack)
	w.say(fdpass.TypeReady)
	fdtest.Receive(t, "ready", m.Ready())
	if m.Looks() {
		t.Error("it looks")
	}
	sent, _ := connect(t, 1)
	deliver(t, m, sent)
	fdpass.CloseHandoffs(w.receive())
	r.want(t, nil)
}

// TestHandBackHostile: what a worker cannot have been handed ends its link, and nothing leaks.
func TestHandBackHostile(t *testing.T) {
	for name, v := range map[string]struct{ room, copies int }{
		"no connection of ours": {1, 2}, "the same again and again": {10, 3},
	} {
		t.Run(name, func(t *testing.T) {
			m, w, b, _ := openBack(t, true, v.room)
			w.hears(4)
			sent, _ := connect(t, 2)
			deliver(t, m, sent)
			got := append(w.receive(), w.receive()...)
			for range v.copies {
				w.say(fdpass.TypeHandBack, got[0])
			}
			fdtest.Receive(t, "its end", m.Left())
			fdpass.CloseHandoffs(got)
			if n := len(b.clients()); n != v.copies-1 {
				t.Errorf("%d taken, and it left: %v", n, m.Err())
			}
		})
	}
	t.Run("before ready", func(t *testing.T) {
		fdtest.NoLeaks(t)
		b := &back{room: 10}
		m, w, _ := openWith(t, nil, Requests{HandBack: b.take, Slots: new(Slots)})
		fd := socket(t, unix.AF_INET, unix.SOCK_STREAM)
		defer unix.Close(fd)
		w.say(fdpass.TypeHandBack)
		w.say(fdpass.TypeHandBack, fdpass.Handoff{FD: fd})
		fdtest.Receive(t, "its end", m.Left())
	})
	t.Run("slots of its own", func(t *testing.T) {
		m, w, _, _ := openBack(t, true, 1)
		fdtest.Check(t, w.TrySendSlots(1, false))
		fdtest.Receive(t, "its end", m.Left())
	})
}

// TestSlotsLater: a worker that does not keep up hears the last number when it does.
func TestSlotsLater(t *testing.T) {
	_, w, _, slots := openBack(t, true, 0)
	for n := range 1000 {
		slots.Set(n + 1)
	}
	fdtest.Eventually(t, "the last number", func() bool {
		var m fdpass.Message
		if err := w.Receive(&m); err != nil || m.Type != fdpass.TypeSlots {
			t.Fatalf("received %+v, error %v", m, err)
		}
		return m.Slots == 1000
	})
}
