package supervisor

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/handfast/handfast/master/reexec/reexectest"
)

// fakeNotices are what a script has a worker say.
type fakeNotices struct {
	noNotices
	w        *world
	ready    chan struct{}
	stopping chan struct{}
	said     Said
	closed   int
}

func (n *fakeNotices) Env() []string             { return []string{"NOTIFY_SOCKET=@here"} }
func (n *fakeNotices) Ready() <-chan struct{}    { return n.ready }
func (n *fakeNotices) Stopping() <-chan struct{} { return n.stopping }
func (n *fakeNotices) Close()                    { n.closed++ }
func (n *fakeNotices) Said() Said {
	n.w.order.Lock()
	defer n.w.order.Unlock()
	return n.said
}

func (n *fakeNotices) says(f func(*Said)) {
	n.w.order.Lock()
	defer n.w.order.Unlock()
	f(&n.said)
}

// heard has the world's workers have notices, and returns those that were made.
func (w *world) heard() *[]*fakeNotices {
	all := new([]*fakeNotices)
	w.cfg.NewNotices = func() (Notices, error) {
		w.order.Lock()
		defer w.order.Unlock()
		n := &fakeNotices{w: w, ready: make(chan struct{}), stopping: make(chan struct{})}
		*all = append(*all, n)
		return n, nil
	}
	return all
}

// TestNoticesWatchdog: a worker that has sent WATCHDOG=1 hangs when it stops doing so, although its link sees nothing wrong. One that never has
// is judged by its link alone.
func TestNoticesWatchdog(t *testing.T) {
	play(t, func(w *world) {
		w.watch(false)
		all := w.heard()
		w.serve(1)
		n := (*all)[0]
		w.pass(time.Minute)
		for range 20 {
			n.says(func(s *Said) { s.Pings++ })
			w.pass(2 * time.Second) // as often as man 3 sd_watchdog_enabled says
		}
		if len(w.events) > 0 {
			t.Fatal(w.events)
		}
		w.pass(4 * time.Second)
		w.saw("hung 0a")
		n.says(func(s *Said) { s.Pings++ })
		w.pass(time.Second)
		w.saw("hung 0a", "answers 0a")
		n.says(func(s *Said) { s.Trigger = true })
		w.pass(time.Second)
		w.saw("hung 0a", "answers 0a", "hung 0a")
		w.expect()
	})
}

// TestNoticesStopping: the slot of a worker that says it stops gets another, and the worker is not told to finish, too.
func TestNoticesStopping(t *testing.T) {
	play(t, func(w *world) {
		all := w.heard()
		w.serve(1)
		close((*all)[0].stopping)
		w.expect("empty 0", "0b starts")
		w.exits("0a", 0)
		w.ready("0b")
		w.expect("fill 0b")
		if n := (*all)[0].closed; n != 1 {
			t.Errorf("closed %d times", n)
		}
	})
}

// TestNoticesReady: where that is needed a worker is ready only when it has said so, too.
func TestNoticesReady(t *testing.T) {
	play(t, func(w *world) {
		w.cfg.NeedsNotice = true
		all := w.heard()
		w.run()
		w.ready("0a")
		w.pass(time.Second)
		w.expect("resize 1", "0a starts")
		close((*all)[0].ready)
		w.expect("fill 0a")
		r := w.reload()
		w.ready("0b")
		w.pass(w.cfg.ReadyTimeout)
		r.fails()
		w.exits("0b", 0)
	})
}

func TestGoldenNotices(t *testing.T) {
	reexectest.Golden(t, noticesPart, map[int]json.RawMessage{4194303: json.RawMessage(`"its socket"`)})
}
