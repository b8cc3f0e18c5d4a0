package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/cmd/trial/nthcall"
	"github.com/handfast/handfast/fdpass/fdtest"
)

const (
	// faultLasts is for how long all calls fail, where all do.
	faultLasts = 500 * time.Millisecond
	// faultPatience bounds each wait, on a busy machine.
	faultPatience = 40 * time.Second
	// mostFailures is how many calls may fail meanwhile: more are made without a pause.
	mostFailures = 1000
)

// situations are what happens while a call fails. None: the program starts.
var situations = map[string]func(*faulty){
	"start":   nil,
	"connect": (*faulty).connect,
	"burst":   (*faulty).burst,
	"crash":   (*faulty).crash,
	"full":    (*faulty).full,
	"reload":  (*faulty).reload,
	"upgrade": (*faulty).upgrade,
	"stop":    (*faulty).stop,
}

// before has what happens before any call fails.
var before = map[string]func(*faulty){"full": (*faulty).fill}

// faulty is a balancer some of whose calls fail.
type faulty struct {
	*instance
	failure
	program string // the worker's
	tracer  *nthcall.Tracer
	failed  []nthcall.Hit
	clients []*faultyClient
}

// try is a failure: a balancer starts, something happens while the call fails, and then all is as before.
func (c failure) try(t *testing.T) {
	o := options{lean: true, worker: []string{c.plays}}
	f := &faulty{failure: c}
	if c.link == "node" {
		o = withNode(t, c.plays, nodeOptions{lean: true})
		f.program, _ = filepath.EvalSymlinks(findNode(t))
	} else {
		f.program = trial.Build(t, testWorker)
	}
	o.variant = c.variant
	f.instance = prepare(t, 2, o)
	f.launchTraced(c.situation == "start")
	t.Cleanup(func() { f.hasExited() }) // before the balancer is stopped
	happens := situations[c.situation]
	if happens == nil && c.n == 0 {
		f.pause()
		f.over()
	}
	up := f.awaitUp()
	if happens == nil && c.n > 0 {
		f.over()
	}
	if !up {
		return
	}
	f.addr = f.log("listening")[0].Address
	f.serves()
	if happens == nil {
		return
	}
	files := f.steadyFiles()
	if prepares := before[c.situation]; prepares != nil {
		prepares(f)
	}
	f.tracer = nthcall.Attach(t, f.cmd.Process.Pid)
	f.tracer.Fail(c.rule())
	happens(f)
	f.over()
	if c.situation == "stop" || f.hasEnded() {
		return
	}
	f.serves()
	f.othersEnd()
	f.reloads()
	f.othersEnd()
	if f.route == "kernel" { // there are listeners for a second generation now
		files += 4
		if f.call == "setsockopt" { // and for one that could not be made as new at once
			files += 2
		}
	}
	if !f.hasEnded() && !within(faultPatience, func() bool { return f.files() <= files }) {
		t.Errorf("%d open files, before %d: %v", f.files(), files, fdtest.OpenFilesOf(f.cmd.Process.Pid))
	}
}

// othersEnd waits until two workers are left.
func (f *faulty) othersEnd() {
	f.t.Helper()
	if !within(faultPatience, func() bool {
		return f.hasExited() || len(f.log("worker started"))-len(f.log("worker exited")) <= 2
	}) {
		f.t.Error("a worker that was replaced does not end")
	}
}

// launchTraced is launch; at once: calls fail from the program's first one on.
func (f *faulty) launchTraced(atOnce bool) {
	f.t.Helper()
	if !atOnce {
		f.launch()
		return
	}
	// A shell waits until it is traced, and then becomes the program.
	f.cmd.Args = append([]string{"sh", "-c", `read line; exec "$@" </dev/null`, "sh", f.cmd.Path}, f.cmd.Args[1:]...)
	f.cmd.Path = "/bin/sh"
	in, err := f.cmd.StdinPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	f.launch()
	f.tracer = nthcall.Attach(f.t, f.cmd.Process.Pid)
	f.tracer.Fail(f.rule())
	fmt.Fprintln(in)
	in.Close()
}

// pause is for as long as all calls fail, if they do.
func (f *faulty) pause() {
	if f.n == 0 {
		select {
		case <-f.exited:
		case <-time.After(faultLasts):
		}
	}
}

// over has no more calls fail.
func (f *faulty) over() {
	f.failed = append(f.failed, f.tracer.Stop()...)
	f.tracer.Detach()
	if len(f.failed) > 0 {
		f.t.Logf("%d calls have failed, the first in %s", len(f.failed), f.failed[0].At())
	}
	if f.told != "" {
		if len(f.failed) == 0 {
			f.t.Error("no call has failed")
		}
		if !within(faultPatience, func() bool { return len(f.log(f.told)) > 0 }) {
			f.t.Errorf("the log does not say %q", f.told)
		}
	}
	if len(f.failed) > mostFailures {
		f.t.Errorf("%d calls have failed in %v: it tries again without a pause", len(f.failed), faultLasts)
	}
}

// awaitUp waits until the balancer serves, and tells whether it does. Else it has ended, and said why.
func (f *faulty) awaitUp() bool {
	f.t.Helper()
	if !within(faultPatience, func() bool {
		return f.hasExited() || len(f.log("worker ready")) >= 2 && len(f.log("listening")) > 0
	}) {
		f.t.Fatal("it hangs at its start")
	}
	if !f.hasExited() {
		return true
	}
	if f.situation != "start" {
		f.t.Fatal("it does not start")
	}
	if f.exit() == exitOK || !f.namesCause() {
		f.t.Errorf("it ended with status %d, and the log names no cause", f.exit())
	}
	return false
}

// hasExited tells whether the balancer has ended. Workers that it has left alone are ended then: they hold the log open.
func (f *faulty) hasExited() bool {
	select {
	case <-f.exited:
		return true
	default:
		if !f.isDead() {
			return false
		}
		f.endWorkers()
		return true
	}
}

// isDead tells whether the process has ended. While one of its threads has another program take its place, the first thread
// is a zombie.
func (f *faulty) isDead() bool {
	pid := f.cmd.Process.Pid
	if alive(pid) {
		return false
	}
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return len(threads) <= 1 && !alive(pid)
}

// endWorkers ends those that a balancer which has ended has left alone.
func (f *faulty) endWorkers() {
	for _, l := range f.log("worker started") {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", l.PID)); exe == f.program {
			unix.Kill(l.PID, unix.SIGKILL)
		}
	}
}

// hasEnded is hasExited where that must not be.
func (f *faulty) hasEnded() bool {
	if !f.hasExited() {
		return false
	}
	f.t.Errorf("it has ended with status %d", f.exit())
	return true
}

// namesCause tells whether the log, or what the program wrote at its end, says which error there was.
func (f *faulty) namesCause() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.lines, func(l logLine) bool {
		told := l.Level == "warn" || l.Level == "error" || l.Level == "" // the last is no line of the log
		return told && (strings.Contains(l.text, f.errno.Error()) || strings.Contains(l.text, "accept paused"))
	})
}

// within is eventually with a bound of its own.
func within(patience time.Duration, f func() bool) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f() {
			return true
		}
	}
	return f()
}

// steadyFiles is files when nothing happens.
func (f *faulty) steadyFiles() (n int) {
	same := 0
	within(faultPatience, func() bool {
		now := f.files()
		if same++; now != n {
			n, same = now, 0
		}
		return same >= 5
	})
	return n
}

// faultyClient asks once.
type faultyClient struct {
	done chan struct{}
	answer
	err error
}

// come has a client of a slot ask for a path.
func (f *faulty) come(slot, i int, path string) *faultyClient {
	c := &faultyClient{done: make(chan struct{})}
	conn, err := f.dial(sourceIn(slot, 2, i))
	if err != nil {
		c.err = err
		close(c.done)
		return c
	}
	conn.SetDeadline(time.Now().Add(faultPatience))
	go func() {
		defer close(c.done)
		defer conn.Close()
		if c.err = request(conn, path); c.err == nil {
			c.answer, c.err = response(conn)
		}
	}()
	return c
}

// clientsCome adds n clients of a slot.
func (f *faulty) clientsCome(slot, n int, path string) {
	for i := range n {
		f.clients = append(f.clients, f.come(slot, i%7, path))
	}
}

// serves wants a client of each slot served, soon.
func (f *faulty) serves() {
	f.t.Helper()
	for slot := range 2 {
		var last *faultyClient
		if !within(faultPatience, func() bool {
			last = f.come(slot, 0, "/")
			<-last.done
			return f.hasExited() || last.err == nil && last.status == http.StatusOK
		}) {
			f.t.Fatalf("clients of slot %d are not served any more: %+v, %v", slot, last.answer, last.err)
		}
	}
}

// allHeard wants each client served, or refused in a way that the log tells of.
func (f *faulty) allHeard() {
	f.t.Helper()
	if f.n == 0 {
		f.pause()
		f.failed = append(f.failed, f.tracer.Stop()...)
	}
	for i, c := range f.clients {
		<-c.done
		switch {
		case c.err == nil && c.status == http.StatusOK:
		case c.err != nil && os.IsTimeout(c.err):
			f.t.Errorf("client %d waits without end: %v", i, c.err)
		case !within(faultPatience/10, func() bool { return len(f.log("connection refused")) > 0 || f.namesCause() }):
			f.t.Errorf("client %d is lost in silence: %+v, %v", i, c.answer, c.err)
		}
	}
}

func (f *faulty) connect() {
	f.clientsCome(0, 3, "/")
	f.clientsCome(1, 3, "/")
	f.allHeard()
}

// burst has many clients come while their worker does nothing.
func (f *faulty) burst() {
	pid := f.worker(1)
	freezeMost(f.t, pid)
	f.clientsCome(1, 80, "/")
	unix.Kill(pid, unix.SIGCONT)
	f.allHeard()
}

const (
	// enoughParked is how many clients are parked when a mailbox is surely full, and mostQueued how many it may have taken by then.
	enoughParked = 20
	mostQueued   = 3000
)

// fill stops a worker, and has clients come until there is no room for more: what sends to it fails then by itself (EAGAIN).
func (f *faulty) fill() {
	freezeMost(f.t, f.worker(1))
	for f.status().Slots[1].Parked < enoughParked {
		if len(f.clients) > mostQueued {
			f.t.Fatalf("the mailbox took %d connections", len(f.clients))
		}
		f.clientsCome(1, 5, "/")
	}
}

// full has clients come while a mailbox has no room, and then it has.
func (f *faulty) full() {
	f.clientsCome(1, 5, "/")
	f.clientsCome(0, 3, "/")
	unix.Kill(f.worker(1), unix.SIGCONT)
	f.allHeard()
}

// crash kills a worker, before it has accepted what came.
func (f *faulty) crash() {
	pid := f.worker(1)
	freezeMost(f.t, pid)
	if f.route == "master" && f.link == "native" { // else some may be its own already
		f.clientsCome(1, 4, "/")
	}
	unix.Kill(pid, unix.SIGKILL)
	f.allHeard()
	f.awaitLog("another worker", "worker ready", 3)
}

// awaitLog waits until one of the messages has come so often.
func (f *faulty) awaitLog(what, message string, n int, others ...string) {
	f.t.Helper()
	if !within(faultPatience, func() bool {
		return f.hasExited() || len(f.log(message)) >= n || slices.ContainsFunc(others, func(m string) bool { return len(f.log(m)) > 0 })
	}) {
		f.t.Errorf("%s has not come", what)
	}
}

// signalUnderWay sends a signal while each slot has a request, and waits until all clients have heard.
func (f *faulty) signalUnderWay(sig unix.Signal) {
	f.clientsCome(0, 1, "/sleep/100ms")
	f.clientsCome(1, 1, "/sleep/100ms")
	f.signal(sig)
	f.allHeard()
}

func (f *faulty) reload() {
	f.signalUnderWay(unix.SIGUSR2)
	f.awaitLog("the end of the reload", "reload finished", 1, "reload failed")
}

func (f *faulty) upgrade() {
	f.signalUnderWay(unix.SIGHUP)
	f.awaitLog("the end of the upgrade", "upgraded", 1, "not upgraded, this program goes on")
}

func (f *faulty) stop() {
	f.signalUnderWay(unix.SIGTERM)
	if !within(faultPatience, f.hasExited) {
		f.t.Error("it does not stop")
	} else if status := f.exit(); status != exitOK && !f.namesCause() {
		f.t.Errorf("it has stopped with status %d, and the log names no cause", status)
	}
}

// reloads wants another reload to succeed.
func (f *faulty) reloads() {
	f.t.Helper()
	n := len(f.log("reload finished"))
	f.signal(unix.SIGUSR2)
	f.awaitLog("the end of another reload", "reload finished", n+1)
}
