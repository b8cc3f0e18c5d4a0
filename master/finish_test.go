package master

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/openconns"
	"github.com/handfast/handfast/master/supervisor"
)

// Programs that are known to finish on a signal get it; others get none, and the log says so and why, where that
// was left to us and workers know nothing of it.
func TestSettleDraining(t *testing.T) {
	gunicorn, unknown := []string{"gunicorn", "app"}, []string{"my-server"}
	for _, c := range []struct {
		kind    LinkKind
		command []string
		asked   syscall.Signal
		want    string
		told    bool
		log     string
	}{
		{LinkAny, gunicorn, 0, "TERM", true, "drain signal chosen: signal=TERM reason="},
		{LinkAny, gunicorn, syscall.SIGTERM, "TERM", true, ""},
		{LinkAny, gunicorn, syscall.SIGQUIT, "QUIT", false, ""},
		{LinkAny, gunicorn, launch.NoSignal, "none", false, ""},
		{LinkActivation, unknown, 0, "none", false, "drain signal chosen: signal=none reason="},
		{LinkInject, unknown, syscall.SIGUSR1, "USR1", false, ""},
		{LinkNative, unknown, 0, "none", false, ""},
		{LinkNode, gunicorn, 0, "TERM", true, ""},
	} {
		m, log := newFake(c.kind)
		m.command = c.command
		m.chooseDraining(c.asked)
		if got := launch.SignalName(m.drainSignal); got != c.want || m.drainsTold != c.told {
			t.Errorf("%v %v, asked for %v: %s, told: %v", c.kind, c.command, c.asked, got, m.drainsTold)
		}
		if c.log == "" && log.String() != "" || !strings.Contains(log.String(), c.log) {
			t.Errorf("%v %v, asked for %v: log %q", c.kind, c.command, c.asked, log)
		}
	}
	if signal, why := ChooseDrainSignal(unknown); signal != "none" || !strings.Contains(why, "my-server is not known to finish") {
		t.Errorf("%s: %s", signal, why)
	}
}

// TestHoldsUp: a connection that is only kept alive holds a worker up, except when all stop.
func TestHoldsUp(t *testing.T) {
	m, _ := newFake(LinkAny, "127.0.0.1:80")
	m.connections = openconns.New(func() []uint16 { return ports(m.route.addresses()) })
	d := m.drain(func() bool { return false })
	if d.Idle() || d.Logger == nil || d.Signal != m.drainSignal {
		t.Errorf("%+v", d)
	}
	ln := fdtest.Listen(t)
	m.route.(*fakeRoute).at = []netip.AddrPort{ln.Addr().(*net.TCPAddr).AddrPort()}
	fdtest.Dial(t, ln) // to this process, which has accepted it and read nothing
	pid := os.Getpid()
	if open, err := d.Open(pid); !open || err != nil {
		t.Errorf("open: %v, %v", open, err)
	}
	fdtest.Eventually(t, "the connection is no more than kept alive", func() bool {
		busy, err := d.Busy(pid)
		return !busy && err == nil
	})
	if open, err := d.Open(pid); !open || err != nil {
		t.Errorf("open: %v, %v", open, err)
	}
	close(m.stop)
	if open, err := d.Open(pid); !open || err != nil {
		t.Errorf("open in the delay before all stop: %v, %v", open, err)
	}
	m.EndStopDelay()
	if open, err := d.Open(pid); open || err != nil {
		t.Errorf("open when all stop: %v, %v", open, err)
	}
}

// That a drain signal ends workers at once is said once, unless their program is known to finish on it.
func TestNoteLoss(t *testing.T) {
	for _, told := range []bool{false, true} {
		m, log := newFake(LinkAny)
		m.drainsTold, m.drainSignal = told, syscall.SIGTERM
		terminated := supervisor.Exit{Code: -1, Signal: "terminated"}
		lost := &workerLink{lost: func(exit supervisor.Exit) bool { return exit == terminated }}
		m.noteLoss(supervisor.Event{Kind: supervisor.WorkerExited, Link: lost})
		m.noteLoss(supervisor.Event{Kind: supervisor.WorkerGone, Link: lost, Exit: terminated})
		m.noteLoss(supervisor.Event{Kind: supervisor.WorkerExited, Link: &workerLink{}, Exit: terminated})
		m.noteLoss(supervisor.Event{Kind: supervisor.WorkerExited, Exit: terminated})
		if log.String() != "" {
			t.Errorf("log:\n%s", log)
		}
		for range 2 {
			m.noteLoss(supervisor.Event{Kind: supervisor.WorkerExited, Link: lost, Exit: terminated, PID: 7})
		}
		if lines := log.lines("pid=7"); told && len(lines) != 0 || !told && (len(lines) != 1 || !strings.Contains(lines[0], "--drain-signal none")) {
			t.Errorf("log:\n%s", log)
		}
	}
}
