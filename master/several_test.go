package master

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/supervisor"
)

// Several processes of one slot are said once in a run, of what several looks have seen and
// what is there still; one worker of each generation is looked at until then.
func TestSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		self, parent, gone := os.Getpid(), os.Getppid(), 1<<30
		sees := [][]int{{gone, self}, {gone, self}, {gone, self}} // generation 1: one, and one that has ended
		var looks, found []string
		s := newSeveral(func(pid int) []int {
			looks = append(looks, fmt.Sprint(pid))
			pids := sees[0]
			sees = sees[1:]
			return pids
		}, func(e supervisor.Event, pids []int) {
			found = append(found, fmt.Sprint(e.Slot, e.Generation, len(pids)))
		})
		ready := func(slot, generation int) {
			s.handleEvent(supervisor.Event{Kind: supervisor.WorkerReady, Seat: supervisor.Seat{Slot: slot, Generation: generation}, PID: generation*10 + slot})
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		ready(1, 1)
		ready(0, 1) // no more looks
		sees = [][]int{nil, {self}, {parent}}
		ready(2, 2) // each was busy when the other was seen
		ready(0, 3)
		if fmt.Sprint(looks) != "[11 11 11 22 22 22]" || fmt.Sprint(found) != "[2 2 2]" {
			t.Errorf("looks %v, found %v", looks, found)
		}
		s = newSeveral(nil, nil)
		s.handleEvent(supervisor.Event{Kind: supervisor.WorkerReady, Seat: supervisor.Seat{Generation: 1}})
		s.close() // does not wait for a look
	})
}

// Of servers that serve with several processes by their nature it is no warning, and of others that are known the log
// says how they serve with one.
func TestWarnSeveral(t *testing.T) {
	pids := make([]int, 12)
	for i := range pids {
		pids[i] = 100 + i
	}
	for command, want := range map[string]string{
		"nginx":    "[INFO]  slot is served by several processes: slot=1 generation=2 processes=12 pids=\"[100 101 102 103 104 105 106 107]\" note=",
		"gunicorn": "remedy=\"gunicorn -w 1, and handfast --workers N for more processes\"",
		"mine":     "[WARN]  slot is served by several processes: slot=1 generation=2 processes=12",
		"other":    "remedy=\"have the server run one process, and handfast --workers N for more\"",
	} {
		m, log := newFake(LinkAny)
		m.command = []string{command}
		m.warnSeveral(supervisor.Event{Seat: supervisor.Seat{Slot: 1, Generation: 2}}, pids)
		if !strings.Contains(log.String(), want) || strings.Contains(log.String(), "remedy") == (command == "nginx") {
			t.Errorf("%s: %s", command, log)
		}
	}
}

// Which sockets a worker's processes wait at: those on handfast's addresses, or any that its link has given it.
func TestSharing(t *testing.T) {
	ln := fdtest.Listen(t)
	for range 2 { // a look at those that wait in accept
		go ln.Accept()
	}
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	for kind, ours := range map[LinkKind][]netip.AddrPort{LinkAny: {at}, LinkNode: addresses("192.0.2.1:1"), LinkInject: nil} {
		m, _ := newFake(kind)
		m.route.(*fakeRoute).at = ours
		if pids := m.sharing(os.Getpid()); len(pids) > 1 || len(pids) == 1 && pids[0] != os.Getpid() {
			t.Errorf("%v: %v", kind, pids)
		}
		if pids := m.sharing(1 << 30); len(pids) != 0 {
			t.Errorf("%v: %v of a process that is not there", kind, pids)
		}
	}
}
