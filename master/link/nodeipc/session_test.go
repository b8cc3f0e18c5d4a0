package nodeipc

import (
	"errors"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// waits is a worker that waits for messages.
func waits(t *testing.T) (*Link, *fakeWorker, *returned) {
	t.Helper()
	l, w, r := openLink(t, ReadyMessage)
	w.sayf(`{"cmd":"ready"}`)
	fdtest.Closed(t, "ready", l.Ready())
	return l, w, r
}

// TestSessions: what @socket.io/sticky workers say of their sessions is passed on, and
// nothing that is no session's name.
func TestSessions(t *testing.T) {
	_, w, r := waits(t)
	w.sayf(`{"type":"sticky:connection","data":"a"}`)
	w.sayf(`{"type":"sticky:connection","data":"b"}`)
	for _, data := range []string{`""`, `null`, `7`, `{}`, `["a"]`, `"` + strings.Repeat("a", clientip.MaxSessionName+1) + `"`} {
		w.sayf(`{"type":"sticky:connection","data":%s}`, data)
		w.sayf(`{"type":"sticky:disconnection","data":%s}`, data)
	}
	w.sayf(`{"type":"sticky:disconnection","data":"none of its own"}`)
	w.sayf(`{"type":"sticky:connection"}`)
	w.sayf(`{"type":"sticky:connection","data":"c"}`)
	r.keeps(t, 3)
	w.sayf(`{"type":"sticky:disconnection","data":"a"}`)
	r.keeps(t, 2)
	w.Close()
	r.keeps(t, 0)
}

// TestSessionsDrain: a worker that keeps sessions gets their connections until the last one
// has ended, and is told to go only then.
func TestSessionsDrain(t *testing.T) {
	l, w, r := waits(t)
	w.sayf(`{"type":"sticky:connection","data":"a"}`)
	r.keeps(t, 1)
	l.Drain()
	hs, clients := connect(t, 2)
	deliver(t, l, hs[:1])
	w.takes()
	w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
	gone(t, clients[0])
	w.sayf(`{"type":"sticky:disconnection","data":"a"}`)
	if m := w.hear(); m.Cmd != cmdDisconnect {
		t.Errorf("heard %+v, want that it is to leave", m)
	}
	if n, err := reexectest.Passing(l.Deliver)(hs[1:]); n != 0 || !errors.Is(err, fdpass.ErrClosed) {
		t.Errorf("delivered %d, error %v", n, err)
	}
	fdpass.CloseHandoffs(hs[1:])
	w.Close()
}

// TestSessionsDrainAtOnce: the second time it is told at once, and so it is when nobody
// comes any more.
func TestSessionsDrainAtOnce(t *testing.T) {
	for name, stop := range map[string]func(*Link){
		"twice":    func(l *Link) { l.Drain(); l.Drain() },
		"stopping": func(l *Link) { l.primary.Stop(); l.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			l, w, r := waits(t)
			w.sayf(`{"type":"sticky:connection","data":"a"}`)
			r.keeps(t, 1)
			stop(l)
			if m := w.hear(); m.Cmd != cmdDisconnect {
				t.Errorf("heard %+v, want that it is to leave", m)
			}
			r.keeps(t, 0)
			w.Close()
		})
	}
}
