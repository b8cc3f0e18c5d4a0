package launch

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/master/openconns"
	"github.com/handfast/handfast/master/supervisor"
)

// fake is a process that notes its signals.
type fake struct {
	mu   sync.Mutex
	sent []syscall.Signal
}

func (*fake) PID() int               { return 12 }
func (*fake) Await() supervisor.Exit { return supervisor.Exit{} }
func (*fake) Rest() []int            { return nil }
func (*fake) Wait() supervisor.Exit  { return supervisor.Exit{} }
func (p *fake) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, sig)
}

func (p *fake) signals() []syscall.Signal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestDrainNone is row A7: without a signal a worker has finished when nobody waits for it and it has
// no connection; and it is told by a signal when that cannot be seen.
func TestDrainNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var idle, none atomic.Bool
		p := new(fake)
		d := NewDrainer(Drain{Signal: NoSignal, Idle: idle.Load, Open: func(pid int) (bool, error) { return !none.Load(), nil }})
		d.Started(p)
		defer d.End()
		d.Drain()
		time.Sleep(time.Hour)
		none.Store(true)
		time.Sleep(time.Hour)
		if isClosed(d.Finished()) {
			t.Error("finished although somebody waits in its queue")
		}
		idle.Store(true)
		time.Sleep(2 * time.Second)
		if !isClosed(d.Finished()) || len(p.signals()) > 0 || d.Told() {
			t.Errorf("finished %v, signals %v, want true and none", isClosed(d.Finished()), p.signals())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := new(fake)
		d := NewDrainer(Drain{Signal: NoSignal, Open: func(int) (bool, error) { return false, openconns.ErrHidden }})
		d.Started(p)
		defer d.End()
		d.Drain()
		time.Sleep(2 * time.Second)
		if s := p.signals(); len(s) != 1 || s[0] != syscall.SIGTERM || isClosed(d.Finished()) {
			t.Errorf("signals %v, want one SIGTERM", s)
		}
	})
	synctest.Test(t, func(t *testing.T) { // End ends it
		d := NewDrainer(Drain{Signal: NoSignal, Open: func(int) (bool, error) { return true, nil }})
		d.Started(new(fake))
		d.Drain()
		time.Sleep(time.Minute)
		d.End()
		if isClosed(d.Finished()) {
			t.Error("finished with a connection open")
		}
	})
}

// TestLost is row A7: a worker has lost requests if its drain signal ended it at once while it was
// busy.
func TestLost(t *testing.T) {
	killed, status := supervisor.Exit{Code: -1, Signal: syscall.SIGTERM.String()}, supervisor.Exit{Code: 143}
	for name, test := range map[string]struct {
		busy  error // nil: it is
		after time.Duration
		exit  supervisor.Exit
		want  bool
	}{
		"killed":        {nil, 0, killed, true},
		"as Java":       {nil, 0, status, true},
		"finished":      {nil, 0, supervisor.Exit{}, false},
		"later":         {nil, 3 * time.Second, killed, false},
		"had nothing":   {errors.New("no"), 0, killed, false},
		"other signal":  {nil, 0, supervisor.Exit{Code: -1, Signal: syscall.SIGKILL.String()}, false},
		"died of other": {nil, 0, supervisor.Exit{Code: 137}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := new(fake)
			d := NewDrainer(Drain{Signal: syscall.SIGTERM, Busy: func(int) (bool, error) { return test.busy == nil, test.busy }})
			d.Started(p)
			defer d.End()
			d.Drain()
			synctest.Wait()
			time.Sleep(drainDelay + time.Millisecond + test.after)
			if got := d.Lost(test.exit); got != test.want || len(p.signals()) != 1 {
				t.Errorf("%s: lost %v after signals %v, want %v", name, got, p.signals(), test.want)
			}
		})
	}
}
