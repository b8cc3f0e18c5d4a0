package master

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/supervisor"
)

// TestAdvice: the log says why a worker is waited for, of the first one of a generation, unless it is ready or has ended
// by then; and a failure is looked into at most every ten seconds.
func TestAdvice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		note := func(what string) func(supervisor.Event) {
			return func(e supervisor.Event) { said = append(said, fmt.Sprint(what, e.PID)) }
		}
		a := newAdvice(note("slow"), note("failed"))
		hear := func(kind supervisor.EventKind, generation, pid int, was supervisor.State) {
			a.handleEvent(supervisor.Event{Kind: kind, Seat: supervisor.Seat{Generation: generation}, PID: pid, Was: was, Exit: supervisor.Exit{Code: 1}})
			synctest.Wait()
		}
		hear(supervisor.WorkerStarted, 1, 10, 0)
		hear(supervisor.WorkerStarted, 1, 11, 0)
		time.Sleep(adviceAfter + 1)
		synctest.Wait()
		hear(supervisor.WorkerStarted, 2, 20, 0)
		hear(supervisor.WorkerReady, 2, 20, 0)
		hear(supervisor.WorkerStarted, 3, 30, 0)
		hear(supervisor.WorkerExited, 3, 30, supervisor.Starting)
		hear(supervisor.WorkerExited, 3, 31, supervisor.Starting)
		hear(supervisor.WorkerExited, 3, 32, supervisor.Draining)
		time.Sleep(adviceInterval)
		hear(supervisor.WorkerExited, 3, 33, supervisor.Stopping)
		hear(supervisor.WorkerExited, 3, 34, supervisor.Serving)
		if got := fmt.Sprint(said); got != "[slow10 failed30 failed34]" {
			t.Error(got)
		}
		hear(supervisor.WorkerStarted, 4, 40, 0)
		a.close() // does not wait for it
	})
}

// The log says what a worker is waited for, by its link.
func TestAdviseSlow(t *testing.T) {
	for kind, want := range map[LinkKind]string{
		LinkNative:     `link=native waits_for="its word by the mailbox`,
		LinkNode:       `link=node waits_for="that it listens on handfast's port, or sends {cmd: 'ready'}"`,
		LinkActivation: `link=activation waits_for="that it accepts from the inherited listeners (LISTEN_FDS)" remedy="--worker-link any`,
		LinkAny:        `link=any waits_for="that it listens on handfast's port, or on any without --listen" remedy="have it bind the address of --listen; --ready-timeout`,
		LinkInject:     `link="any, by accept injection" waits_for="that it listens on handfast's port" remedy="have it bind`,
	} {
		m, log := newFake(kind)
		e := supervisor.Event{Seat: supervisor.Seat{Slot: 1, Generation: 2}, PID: 3, Link: &workerLink{served: func() bool { return true }}}
		if m.adviseSlow(e); log.String() != "" {
			t.Errorf("%v: has what it needs, and is not ready: %s", kind, log)
		}
		e.Link = &workerLink{}
		m.adviseSlow(e)
		if !strings.Contains(log.String(), "[INFO]  worker is not ready yet: slot=1 pid=3 generation=2 "+want) {
			t.Errorf("%v: %s", kind, log)
		}
	}
}

// A worker that could not have an address: that of another worker, handfast's, or somebody else's.
func TestAdviseFailed(t *testing.T) {
	fdtest.NoLeaks(t)
	own := fdtest.Listen(t) // a worker has it
	cfg, workers, _ := newConfig(t)
	workers.self = true
	p := run(t, cfg)
	p.isReady()
	port := uint16(own.Addr().(*net.TCPAddr).Port)
	words := func(port uint16) string { return fmt.Sprintf("bind: address already in use: 127.0.0.1:%d", port) }
	asked := func(ports ...uint16) *workerLink {
		return &workerLink{asked: func() (all []foreign.OwnAddress) {
			for _, port := range ports {
				all = append(all, foreign.OwnAddress{Network: "tcp", AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)})
			}
			return all
		}}
	}
	handfast := p.route.addresses()[0].Port()
	for name, c := range map[string]struct {
		kind  LinkKind
		link  *workerLink
		words string
		want  string
	}{
		"no address":            {LinkAny, &workerLink{}, "out of memory", ""},
		"asked, of another":     {LinkAny, asked(1, port, 2), "out of memory", fmt.Sprintf("worker cannot have an address of its own that another one has: slot=4 pid=5 generation=6 network=tcp address=127.0.0.1:%d other_slot=0 ", port)},
		"named, of another":     {LinkNode, &workerLink{}, words(port), fmt.Sprintf("worker cannot have an address of its own that another one has: slot=4 pid=5 generation=6 network=tcp address=:%d other_slot=0 ", port)},
		"handfast's, by a link": {LinkNative, &workerLink{}, words(handfast), fmt.Sprintf("worker binds the port beside its link: slot=4 pid=5 generation=6 link=native port=%d remedy=\"--worker-link any", handfast)},
		"handfast's, bound":     {LinkAny, &workerLink{}, words(handfast), fmt.Sprintf("worker cannot have an address that is in use: slot=4 pid=5 generation=6 port=%d", handfast)},
		"a stranger's":          {LinkNative, &workerLink{}, words(9999), "worker cannot have an address that is in use: slot=4 pid=5 generation=6 port=9999 remedy=\"--worker-link any if it listens by itself on handfast's port; else "},
	} {
		m, log := newFake(c.kind)
		m.route, m.supervisor, m.command = p.route, p.supervisor, []string{"server"}
		m.adviseFailed(supervisor.Event{Seat: supervisor.Seat{Slot: 4, Generation: 6}, PID: 5, Link: c.link, LastWords: c.words})
		if c.want == "" && log.String() != "" || !strings.Contains(log.String(), c.want) || strings.Count(log.String(), "\n") > 1 {
			t.Errorf("%s: log %q, want %q", name, log, c.want)
		}
	}
}

// The port that a worker named comes first, then what it has asked for last; what it has not asked for may
// have been any of its own, unless that is handfast's.
func TestWanted(t *testing.T) {
	m, _ := newFake(LinkAny, "127.0.0.1:80")
	link := &workerLink{asked: func() []foreign.OwnAddress {
		var all []foreign.OwnAddress
		for _, at := range addresses("0.0.0.0:1", "0.0.0.0:2", "0.0.0.0:3", "[::]:2") {
			all = append(all, foreign.OwnAddress{Network: "tcp", AddrPort: at})
		}
		return all
	}}
	for _, c := range []struct {
		link *workerLink
		port uint16
		want string
	}{
		{link, 0, "tcp [::]:2, tcp 0.0.0.0:3, tcp 0.0.0.0:2, tcp 0.0.0.0:1"},
		{link, 2, "tcp [::]:2, tcp 0.0.0.0:2, tcp 0.0.0.0:3, tcp 0.0.0.0:1"},
		{link, 9, "tcp [::]:2, tcp 0.0.0.0:3, tcp 0.0.0.0:2, tcp 0.0.0.0:1"},
		{&workerLink{}, 9, "tcp [::]:9, udp [::]:9"},
		{&workerLink{}, 80, ""},
		{&workerLink{}, 0, ""},
	} {
		var got []string
		for _, at := range m.wanted(c.link, c.port) {
			got = append(got, at.Network+" "+at.String())
		}
		if got := strings.Join(got, ", "); got != c.want {
			t.Errorf("port %d: %s, want %s", c.port, got, c.want)
		}
	}
}
