package master

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/supervisor"
)

// Each connection has a line: who it is from, what became of it, and which process has it.
func TestAccessLog(t *testing.T) {
	fdtest.NoLeaks(t)
	cfg, workers, _ := newConfig(t)
	access := new(journal)
	cfg.AccessLog = access.logger()
	outcomes := make(chan balancer.Outcome, 10)
	cfg.Balancer.OnOutcome = func(o balancer.Outcome) { outcomes <- o }
	p := run(t, cfg)
	p.isReady()
	c := p.dial()
	if got := p.answer(c); got != "0#0" {
		t.Errorf("answered by %q", got)
	}
	o := fdtest.Receive(t, "an outcome", outcomes)
	fdtest.Eventually(t, "a line is written", func() bool { return access.String() != "" })
	access.expect(t, "connection: peer="+c.LocalAddr().String()+" client=127.0.0.1 slot=0 pid=1073741824 parked=0 result=handed_off")
	if pid := p.pidOf(o); pid != firstPID {
		t.Errorf("pid %d", pid)
	}
	// In a reload it is still the worker that has it, also when that drains.
	workers.deaf.Store(true)
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pid := p.pidOf(o); pid != firstPID {
		t.Errorf("pid %d while it drains", pid)
	}
	workers.deaf.Store(false)
	workers.worker(0).end(supervisor.Exit{})
	fdtest.Eventually(t, "it is gone", func() bool { return p.pidOf(o) == 0 })
	o.Slot = balancer.NoSlot
	if pid := p.pidOf(o); pid != 0 {
		t.Errorf("pid %d of no slot", pid)
	}
}

// Of what has ended in the master, the line says why.
func TestAccessLogOfEnds(t *testing.T) {
	m, _ := newFake(LinkNative)
	log := new(journal)
	m.access = log.logger()
	peer, client := netip.MustParseAddrPort("192.0.2.1:5"), netip.MustParseAddr("192.0.2.7")
	m.logOutcome(balancer.Outcome{Peer: peer, Slot: balancer.NoSlot, Err: clientip.ErrGone, Parked: time.Second})
	m.logOutcome(balancer.Outcome{Peer: peer, Client: client, Slot: 3, Err: errors.New("bad luck"), Parked: 2 * time.Second})
	want := []string{
		"[INFO]  connection: peer=192.0.2.1:5 parked=1 result=gone",
		"[INFO]  connection: peer=192.0.2.1:5 client=192.0.2.7 slot=3 parked=2 result=refused reason=other",
	}
	if got := log.lines("connection"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("log:\n%s", log)
	}
}
