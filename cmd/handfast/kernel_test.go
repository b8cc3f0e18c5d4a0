package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestKernelRoute: what is promised does not depend on who gives clients to slots.
func TestKernelRoute(t *testing.T) {
	t.Parallel()
	under(t, variant{route: "kernel"})
	for name, test := range map[string]func(*testing.T){
		"Sticky":                  TestSticky,
		"Scale":                   TestScale,
		"Listen":                  TestListen,
		"ReloadUnderLoad":         func(t *testing.T) { t.Parallel(); reloadUnderLoad(t, reloads(t, 8), 3) },
		"ReloadQueued":            TestReloadQueued,
		"ReloadOfBrokenVersion":   TestReloadOfBrokenVersion,
		"KillUnderLoad":           TestKillUnderLoad,
		"MasterDies":              TestMasterDies,
		"WebSocketsSurviveReload": TestWebSocketsSurviveReload,
		"Stop":                    TestStop,
		"StopWithRequestInFlight": TestStopWithRequestInFlight,
		"StopUnderLoad":           func(t *testing.T) { t.Parallel(); stopUnderLoad(t) },
		"Refusal":                 TestRefusal,
		"RefuseClose":             TestRefuseClose,
		"Patience":                TestPatience,
		"WhenDownNext":            TestWhenDownNext,
	} {
		t.Run(name, test)
	}
}

// TestKernelNode: nor does what is promised to Node servers. They accept for themselves;
// workers that wait for messages get them from the master.
func TestKernelNode(t *testing.T) {
	t.Parallel()
	under(t, variant{route: "kernel"})
	for name, test := range map[string]func(*testing.T){
		"Sticky":          TestNodeSticky,
		"TLS":             TestNodeTLS,
		"ReloadUnderLoad": TestNodeReloadUnderLoad,
		"KillUnderLoad":   TestNodeKillUnderLoad,
		"Ready":           TestNodeReady,
		"ListensAgain":    TestNodeListensAgain,
		"Session":         TestNodeSession,
		"Relay":           TestNodeRelay,
	} {
		t.Run(name, test)
	}
}

// startKernel is start with --route kernel.
func startKernel(t *testing.T, n int, o options) *instance {
	t.Helper()
	o.route = "kernel"
	return start(t, n, o)
}

// stopped stops the balancer and returns what it has counted.
func (b *instance) stopped() logLine {
	b.t.Helper()
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		b.t.Errorf("exit status %d", status)
	}
	return b.await("stopped")
}

// TestKernelAccepts: the master has nothing to do with connections. If a worker has taken its time
// to start, it may have the first clients: it was about to accept for the empty slot.
func TestKernelAccepts(t *testing.T) {
	t.Parallel()
	b := startKernel(t, 2, options{})
	accepted := func() uint64 {
		if n := b.status().Totals.Accepted; n != nil {
			return *n
		}
		return 0
	}
	if !eventually(func() bool {
		before := accepted()
		b.slotsOf(sources(20), 2)
		return accepted() == before
	}) {
		t.Errorf("the master accepts, %d by now", accepted())
	}
}

// TestKernelKill: clients wait in the queue of a worker that is stalled, and when it is killed
// its successor serves them all. Other slots are not touched.
func TestKernelKill(t *testing.T) {
	t.Parallel()
	const clients = 300
	b := startKernel(t, 2, options{})
	victim := b.worker(1)
	freeze(t, victim)
	waiting := b.open(sourceIn(1, 2, 0), clients)
	b.mustGet(sourceIn(0, 2, 0), "/")
	unix.Kill(victim, unix.SIGKILL)
	successor := 0
	for i, conn := range waiting {
		a, err := response(conn)
		if i == 0 {
			successor = a.pid
		}
		if err != nil || a.status != http.StatusOK || a.pid == victim || a.pid != successor || a.slot != 1 {
			t.Fatalf("client %d: %+v, %v", i, a, err)
		}
	}
	if end := b.stopped(); end.Refused != 0 {
		t.Errorf("counted: %s", end.text)
	}
}

// TestKernelHandsOff: for a worker that does not accept for itself the master does, and
// places by the same hash.
func TestKernelHandsOff(t *testing.T) {
	t.Parallel()
	b := startKernel(t, 3, options{worker: []string{"receives"}})
	b.slotsOf(sources(30), 2)
	_, stop := b.load(4, "/", "/sleep/5ms")
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	b.signal(unix.SIGTTOU)
	b.await("number of slots changed")
	stop()
	if end := b.stopped(); end.ByMaster == 0 || end.HandedOff < end.ByMaster || end.Refused != 0 {
		t.Errorf("counted: %s", end.text)
	}
}

// TestKernelScaleUnderLoad: the number of slots changes in one step, and no connection is
// lost on the way.
func TestKernelScaleUnderLoad(t *testing.T) {
	t.Parallel()
	b := startKernel(t, 2, options{})
	made, stop := b.load(8, "/", "/sleep/10ms", "/", "/bytes/100000")
	for i := range 8 {
		sig := unix.SIGTTIN
		if i%4 >= 2 {
			sig = unix.SIGTTOU
		}
		before := made.Load()
		ready := len(b.log("worker ready"))
		b.signal(sig)
		b.awaitCount("number of slots changed", i+1)
		if sig == unix.SIGTTIN {
			b.awaitCount("worker ready", ready+1)
		}
		if !eventually(func() bool { return made.Load() > before+20 || t.Failed() }) {
			t.Fatal("nothing is served")
		}
	}
	stop()
	if end := b.stopped(); end.Refused != 0 {
		t.Errorf("counted: %s", end.text)
	}
}

// TestKernelOrphans: processes that still hold a listener would go on taking clients, and
// are named.
func TestKernelOrphans(t *testing.T) {
	t.Parallel()
	b := startKernel(t, 2, options{worker: []string{"hoards"}, notReady: true})
	b.hears("hoards", 2)
	names := func(pid int) {
		t.Helper()
		var out fdtest.Log
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		status := run(ctx, []string{"handfast", "run", "--route", "kernel", "--listen", b.addr, "--", "true"}, &out, &out)
		if text := out.String(); status != exitFailure || !strings.Contains(text, fmt.Sprint(pid)) || !strings.Contains(text, b.addr) {
			t.Errorf("status %d, does not name %d: %s", status, pid, text)
		}
	}
	master := b.cmd.Process.Pid
	names(master)
	b.signal(unix.SIGKILL)
	if !eventually(func() bool { return !alive(master) }) {
		t.Fatal("the master lives")
	}
	workers := b.awaitCount("worker started", 2)
	names(workers[0].PID)
	for _, l := range workers {
		unix.Kill(l.PID, unix.SIGKILL)
	}
}

// TestRouteChosen: auto is the kernel unless something else than addresses matters, and the
// log says why; who insists is told.
func TestRouteChosen(t *testing.T) {
	t.Parallel()
	under(t, variant{route: "auto"})
	if b := start(t, 1, options{}); !strings.Contains(b.await("listening").text, `"route":"kernel"`) {
		t.Error("auto is not the kernel")
	} else if l := b.log("route chosen"); len(l) != 1 || !strings.Contains(l[0].text, `"route":"kernel"`) || !strings.Contains(l[0].text, "by address") {
		t.Errorf("the log says of the route: %v", l)
	}
	b := start(t, 1, options{flags: []string{"--behind-proxy"}})
	if why := b.await("route chosen").text; !strings.Contains(why, "--behind-proxy") {
		t.Error(why)
	}
	for args, want := range map[string]string{"--behind-proxy": "--route kernel: ", "--proxy-protocol": "--route kernel: ", "--ebpf off --workers 1000": "--route kernel: 1000 slots are more than the 128"} {
		var out fdtest.Log
		args := append(append([]string{"handfast", "run", "--route", "kernel", "--listen", "127.0.0.1:0"}, strings.Fields(args)...), "--", "true")
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if status := run(ctx, args, &out, &out); status != exitUsage || !strings.Contains(out.String(), want) {
			t.Errorf("%v: exit status %d: %s", args, status, &out)
		}
	}
}
