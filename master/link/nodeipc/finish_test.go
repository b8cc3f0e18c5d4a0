package nodeipc

import (
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/supervisor"
)

// still is a process that nothing happens to.
type still struct{}

func (still) PID() int                   { return 12 }
func (still) Signal(syscall.Signal)      {}
func (still) Await() (e supervisor.Exit) { return e }
func (still) Rest() []int                { return nil }
func (still) Wait() (e supervisor.Exit)  { return e }

// TestFinished is row A8: a worker has finished when it was told to, has disconnected and has no
// connection left, and not before.
func TestFinished(t *testing.T) {
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	var looks atomic.Int32
	var none atomic.Bool
	p.cfg.Open = func(pid int) (bool, error) {
		looks.Add(1)
		return !none.Load(), nil
	}
	l, w := p.openLink(t)
	l.Started(still{})
	l.Drain()
	w.hear()
	w.hear()
	time.Sleep(50 * time.Millisecond) // nothing is to happen
	if looks.Load() > 0 {
		t.Error("its connections count before it has disconnected")
	}
	w.Close()
	fdtest.Eventually(t, "looks", func() bool { return looks.Load() > 2 })
	if fdtest.IsClosed(l.Finished()) {
		t.Error("finished with a connection open")
	}
	none.Store(true)
	fdtest.Closed(t, "finished", l.Finished())
}

// TestSentSockets is row A8: what Node asks about sockets that a worker has sent is answered as its
// primary would that has closed them.
func TestSentSockets(t *testing.T) {
	_, w, _ := openLink(t, ReadyAuto)
	for ask, want := range map[string]string{
		`{"cmd":"NODE_SOCKET_NOTIFY_CLOSE","key":"4:null:1"}`: `{"cmd":"NODE_SOCKET_ALL_CLOSED","key":"4:null:1"}`,
		`{"cmd":"NODE_SOCKET_GET_COUNT","key":"4:null:1"}`:    `{"cmd":"NODE_SOCKET_COUNT","key":"4:null:1","count":0}`,
	} {
		w.sayf("%s", ask)
		if got := string(w.hearLine()); got != want {
			t.Errorf("%s is answered with %s, want %s", ask, got, want)
		}
	}
}
