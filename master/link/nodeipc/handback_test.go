package nodeipc

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec"
)

const handsBack = `{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"cmd":"NODE_HANDFAST_HAND_BACK"}}` + "\n"

// send says text, with a descriptor that is closed.
func (w *fakeWorker) send(text string, fd int) {
	w.t.Helper()
	fdtest.Check(w.t, unix.Sendmsg(w.fd, []byte(text), unix.UnixRights(fd), nil, 0))
	unix.Close(fd)
}

// openHandBack makes a link that passes on what is handed back, or refuses it with an error.
func openHandBack(t *testing.T) (w *fakeWorker, l *Link, back chan fdpass.Handoff, fails *atomic.Value) {
	r := new(returned)
	p := newPrimary(t, ReadyAuto, r, hclog.NewNullLogger())
	back, fails = make(chan fdpass.Handoff, 10), new(atomic.Value)
	p.cfg.HandBack = func(_ *Link, hs []fdpass.Handoff) (int, error) {
		reexec.Lock.MustHold()
		if err, ok := fails.Load().(error); ok {
			return 0, err
		}
		back <- hs[0]
		return 1, nil
	}
	l, w = p.openLink(t)
	return w, l, back, fails
}

// TestHandBack: a worker that asks is told to, and what it hands back is passed on and acknowledged, also if the message comes in
// two pieces.
func TestHandBack(t *testing.T) {
	w, _, back, _ := openHandBack(t)
	w.sayf(`{"cmd":"NODE_HANDFAST_HAND_BACK"}`)
	if m := w.hear(); m.Cmd != cmdHandBack {
		t.Errorf("heard %+v", m)
	}
	hs, clients := connect(t, 3)
	for i, h := range hs {
		at := len(handsBack) * i / 2
		if i == 0 {
			at = len(handsBack)
		}
		w.send(handsBack[:max(at, 1)], h.FD)
		w.say(handsBack[max(at, 1):])
		if m := w.hear(); m.Cmd != cmdAck {
			t.Errorf("heard %+v", m)
		}
		got := fdtest.Receive(t, "connection", back)
		if inode := fdtest.Inode(t, got.FD); inode != clients[i].inode {
			t.Errorf("connection %d: %d, want %d", i, inode, clients[i].inode)
		}
		unix.Close(got.FD)
	}
}

// TestHandBackLost: a descriptor that did not arrive is asked for again, and what is no connection of ours ends the link.
func TestHandBackLost(t *testing.T) {
	w, l, _, fails := openHandBack(t)
	w.say(handsBack)
	if m := w.hear(); m.Cmd != cmdNack {
		t.Errorf("heard %+v", m)
	}
	foreign := errors.New("foreign")
	fails.Store(foreign)
	hs, clients := connect(t, 1)
	w.send(handsBack, hs[0].FD)
	fdtest.Closed(t, "link", l.Left())
	if l.Err() != foreign {
		t.Errorf("left: %v", l.Err())
	}
	gone(t, clients...)
}

// TestHandBackDiscarded: descriptors that come with anything else are closed, and so is one whose message never ends.
func TestHandBackDiscarded(t *testing.T) {
	w, l, back, _ := openHandBack(t)
	hs, clients := connect(t, 3)
	w.send(strings.Replace(handsBack, "HANDFAST", "NOBODY", 1), hs[0].FD)
	if m := w.hear(); m.Cmd != cmdAck {
		t.Errorf("heard %+v", m)
	}
	w.send("{", hs[1].FD)
	w.send("{", hs[2].FD)
	gone(t, clients[:2]...)
	l.Close()
	gone(t, clients...)
	if len(back) > 0 {
		t.Error("something is handed back")
	}
}
