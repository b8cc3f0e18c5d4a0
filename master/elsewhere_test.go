package master

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// Where a worker listens is said once, of what two looks have seen together, unless it is handfast's address, or the
// worker is ready or has ended by then.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // orders the script and the looks, which a sleep does not for the race detector
		sees, served := map[int][]string{}, map[int]bool{}
		var found []string
		w := newElsewhere(func(at netip.AddrPort) bool { return at.Port() == 80 }, func(e supervisor.Event, at []netip.AddrPort) {
			mu.Lock()
			defer mu.Unlock()
			found = append(found, fmt.Sprint(e.PID, at))
		})
		w.listens = func(pid int) []netip.AddrPort {
			mu.Lock()
			defer mu.Unlock()
			return addresses(sees[pid]...)
		}
		serves := func(pid int) bool {
			mu.Lock()
			defer mu.Unlock()
			return served[pid]
		}
		hear := func(kind supervisor.EventKind, pid int) {
			w.handleEvent(supervisor.Event{Kind: kind, PID: pid, Link: &workerLink{served: func() bool { return serves(pid) }}})
		}
		look := func(change func()) {
			mu.Lock()
			change()
			mu.Unlock()
			time.Sleep(elsewhereInterval)
			synctest.Wait()
		}
		expect := func(want ...string) {
			mu.Lock()
			defer mu.Unlock()
			if slices.Sort(found); !slices.Equal(found, want) {
				t.Errorf("found %q, want %q", found, want)
			}
			found = nil
		}
		for pid := range 6 {
			hear(supervisor.WorkerStarted, pid)
		}
		time.Sleep(time.Nanosecond) // what is seen does not change in the moment of a look
		look(func() {
			sees[0] = []string{"127.0.0.1:80"}
			sees[1] = []string{"127.0.0.1:80", "127.0.0.1:3000", "[::]:9090"}
			sees[2] = []string{"127.0.0.1:9090"}
			sees[3], served[3] = []string{"127.0.0.1:3000"}, true
			sees[4] = []string{"127.0.0.1:3000"}
		})
		expect()
		hear(supervisor.WorkerReady, 4)
		look(func() {
			sees[1] = []string{"127.0.0.1:3000", "127.0.0.1:80"}
			sees[2] = []string{"127.0.0.1:8080"}
		})
		expect("1 [127.0.0.1:3000]")
		look(func() {
			sees[1] = []string{"127.0.0.1:4000"}
		})
		expect("2 [127.0.0.1:8080]")
		look(func() { served[3] = false }) // it has closed what it had
		look(func() {})
		expect("3 [127.0.0.1:3000]")
		hear(supervisor.WorkerExited, 5)
		hear(supervisor.WorkerExited, 5) // has no effect
		w.close()                        // does not wait for worker 0
		if len(w.stop) != 4 {
			t.Errorf("%d looks are remembered", len(w.stop))
		}
	})
}

// A socket is the balancer's own, or the one for IPv4 beside one of both families.
func TestListensOn(t *testing.T) {
	m, _ := newFake(LinkAny, "[::]:80", "127.0.0.1:81")
	for at, want := range map[string]bool{
		"[::]:80":      true,
		"0.0.0.0:80":   true,
		"127.0.0.1:80": false,
		"[::1]:80":     false,
		"0.0.0.0:81":   false,
		"127.0.0.1:81": true,
		"[::]:82":      false,
	} {
		if got := m.listensOn(netip.MustParseAddrPort(at)); got != want {
			t.Errorf("%s: %v", at, got)
		}
	}
}

// The log says what to do about it, which depends on the link.
func TestWarnElsewhere(t *testing.T) {
	for _, c := range []struct {
		kind LinkKind
		ours []string
		at   []string
		want string
	}{
		{LinkNative, []string{"127.0.0.1:80"}, []string{"[::]:3000"}, `worker=:3000 handfast=127.0.0.1:80 remedy="say --listen :3000, and --worker-link any if it knows nothing of handfast; or have it listen on port 80"`},
		{LinkNode, []string{"127.0.0.1:80"}, []string{"127.0.0.1:3000"}, `worker=127.0.0.1:3000 handfast=127.0.0.1:80 remedy="say --listen 127.0.0.1:3000; or have it listen on port 80"`},
		{LinkActivation, []string{"[::]:80"}, []string{"0.0.0.0:3000"}, `worker=0.0.0.0:3000 handfast=:80 remedy="say --listen 0.0.0.0:3000, and --worker-link any if it takes no socket from systemd (LISTEN_FDS); or have it listen on port 80"`},
		{LinkAny, nil, []string{"[::1]:3001", "127.0.0.1:3000"}, `worker="127.0.0.1:3000 [::1]:3001" handfast="" remedy="say --listen 127.0.0.1:3000"`},
	} {
		m, log := newFake(c.kind, c.ours...)
		m.warnElsewhere(supervisor.Event{Seat: supervisor.Seat{Slot: 2, Generation: 3}, PID: 4}, addresses(c.at...))
		log.expect(t, "[WARN]", "worker listens elsewhere: slot=2 pid=4 generation=3", c.want)
	}
}
