package main

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/balancer"
)

// open connects n clients from one address, each with a request sent and not
// answered yet.
func (b *instance) open(from netip.Addr, n int) (clients []*net.TCPConn) {
	b.t.Helper()
	for range n {
		conn, err := b.dial(from)
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { conn.Close() })
		if err := request(conn, "/"); err != nil {
			b.t.Fatal(err)
		}
		clients = append(clients, conn)
	}
	return clients
}

// TestKillWithFullMailbox: a worker is killed while 200 handoffs lie in its
// mailbox. All are answered by its successor, and other slots are not touched.
func TestKillWithFullMailbox(t *testing.T) {
	t.Parallel()
	const clients = 200
	b := start(t, 2, options{})
	files := b.files()
	victim := b.worker(1)
	freeze(t, victim)
	waiting := b.open(sourceIn(1, 2, 0), clients)
	// All are in the mailbox, and the master has closed its copies.
	if !eventually(func() bool { return *b.status().Totals.HandedOff == clients && b.files() == files }) {
		t.Fatalf("%+v; the master has %d open files, at the start %d", b.status().Totals, b.files(), files)
	}
	unix.Kill(victim, unix.SIGKILL)

	served := make(map[int]int)
	for i, conn := range waiting {
		a, err := response(conn)
		if err != nil || a.status != http.StatusOK {
			t.Fatalf("client %d: %+v, %v", i, a, err)
		}
		served[a.pid]++
	}
	if successor := b.worker(1); successor == victim || served[successor] != clients {
		t.Errorf("served by pid: %v; the successor is %d", served, successor)
	}
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
	if end := b.await("stopped"); end.Accepted != clients || end.TakenBack != clients || end.Refused != 0 {
		t.Errorf("counted: %s", end.text)
	}
}

// breath is what a client under load takes between two requests: workers are to start meanwhile. Of eight clients one
// comes each millisecond or so.
const breath = 10 * time.Millisecond

// load makes requests, one at a time from each of n clients, until stop, and reports
// each that fails. It counts in made those that were answered.
func (b *instance) load(n int, paths ...string) (made *atomic.Int64, stop func()) {
	made = new(atomic.Int64)
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for i := range n {
		clients.Go(func() {
			for k := i; ctx.Err() == nil; k++ { // not all the same at a time
				a, err := b.get(source(i), paths[k%len(paths)])
				if err != nil || a.status != http.StatusOK {
					b.t.Errorf("client %d, request %d: %+v, %v", i, k, a, err)
					return
				}
				made.Add(1)
				time.Sleep(breath)
			}
		})
	}
	stop = func() {
		cancel()
		clients.Wait()
	}
	b.t.Cleanup(stop)
	return made, stop
}

// TestReloadUnderLoad: reloads, and no request fails. Open connections make older
// generations drain while the next reloads go on.
func TestReloadUnderLoad(t *testing.T) { reloadUnderLoad(t, reloads(t, 8), 3) }

// reloadUnderLoad reloads, with a connection that stays open in each of the first generations.
func reloadUnderLoad(t *testing.T, reloads, held int) {
	b := start(t, 2, options{})
	made, stop := b.load(8, "/", "/sleep/10ms", "/bytes/100000", "/sleep/1500ms", "/")
	var open []*websocket.Conn
	for i := range reloads {
		if i < held {
			open = append(open, b.socketFor(sourceIn(0, 2, i)))
		}
		b.signal(unix.SIGUSR2)
		b.awaitCount("reload finished", i+1)
		if !eventually(func() bool { return made.Load() >= int64(5*i) || t.Failed() }) {
			t.Fatalf("only %d requests were answered during %d reloads", made.Load(), i+1)
		}
		if draining := len(b.log("worker started")) - len(b.log("worker exited")) - 2; i == held && draining < held {
			t.Errorf("%d workers drain, want one of each of the first %d generations", draining, held)
		}
	}
	stop()
	for i, c := range open {
		if err := exchange(t.Context(), c, "still there"); err != nil {
			t.Errorf("the connection of generation %d: %v", i+1, err)
		}
		c.CloseNow()
	}
	if a := b.mustGet(source(0), "/"); a.generation != reloads+1 {
		t.Errorf("generation %d after %d reloads", a.generation, reloads)
	}
	for _, l := range b.log("worker exited") {
		if l.Exit != "status 0" {
			t.Errorf("a drained worker ended with %s", l.Exit)
		}
	}
}

// TestReloadQueued: signals during a reload make one more, not one each.
func TestReloadQueued(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{race: true})
	_, stop := b.load(4, "/")
	for range 20 {
		b.signal(unix.SIGUSR2)
	}
	b.await("reload finished")
	if !eventually(func() bool { return len(b.log("reload started")) == len(b.log("reload finished")) }) {
		t.Error("a reload does not end")
	}
	stop()
}

// TestReloadOfBrokenVersion: a version that does not come up replaces nobody, and
// the log says why; the next one that works does.
func TestReloadOfBrokenVersion(t *testing.T) {
	t.Parallel()
	broken := t.TempDir() + "/broken"
	b := start(t, 2, options{worker: []string{"broken", broken}})
	_, stop := b.load(4, "/", "/sleep/5ms")
	before := []int{b.worker(0), b.worker(1)}
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.signal(unix.SIGUSR2)
	if why := b.await("reload failed").Err; !strings.Contains(why, "status 3") || !strings.Contains(why, "slot 0") {
		t.Errorf("the log says %q", why)
	}
	if after := []int{b.worker(0), b.worker(1)}; !slices.Equal(before, after) {
		t.Errorf("workers were %v, are %v", before, after)
	}
	os.Remove(broken)
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	stop()
}

// TestKillUnderLoad: a worker that is killed takes with it only what it had
// accepted: at most the requests of the clients of its slot that are being served.
func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	const kills, clients = 6, 8
	b := start(t, 2, options{flags: []string{"--min-uptime", "0s"}})
	var failed, made atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for ctx.Err() == nil {
				a, err := b.get(source(i), "/")
				switch {
				case err == nil && a.status == http.StatusOK:
					made.Add(1)
				case err == nil:
					t.Errorf("client %d got %d", i, a.status)
				default:
					failed.Add(1)
				}
				time.Sleep(breath)
			}
		})
	}
	for i := range kills {
		b.awaitCount("worker ready", 2+i)
		unix.Kill(b.worker(0), unix.SIGKILL)
	}
	b.awaitCount("worker ready", 2+kills)
	cancel()
	running.Wait()
	if f := failed.Load(); f > kills*clients || made.Load() < kills {
		t.Errorf("%d requests failed in %d kills, %d were answered", f, kills, made.Load())
	}
}

// TestMasterDies: when the master is killed its workers notice by themselves,
// finish what they have, and exit.
func TestMasterDies(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{race: true})
	slow, err := b.dial(source(0))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if err := request(slow, "/sleep/300ms"); err != nil {
		t.Fatal(err)
	}
	b.mustGet(source(0), "/") // so the slow one, before it, is in its worker
	workers := []int{b.worker(0), b.worker(1)}
	b.signal(unix.SIGKILL)
	if a, err := response(slow); err != nil || a.status != http.StatusOK {
		t.Errorf("request in flight: %+v, %v", a, err)
	}
	for _, pid := range workers {
		if !eventually(func() bool { return !alive(pid) }) {
			t.Errorf("worker %d lives on without a master", pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// TestWebSocketsSurviveReload: a worker leaves when its last connection ends, not
// before.
func TestWebSocketsSurviveReload(t *testing.T) {
	t.Parallel()
	const clients = 20
	b := start(t, 2, options{race: true})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var sockets []*websocket.Conn
	for i := range clients {
		transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return b.dial(source(i)) }}
		c, _, err := websocket.Dial(ctx, "ws://"+b.addr+"/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		sockets = append(sockets, c)
	}
	talk := func() {
		for i, c := range sockets {
			if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
			if _, msg, err := c.Read(ctx); err != nil || string(msg) != "hello" {
				t.Fatalf("client %d: %q, %v", i, msg, err)
			}
		}
	}
	talk()
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	b.signal(unix.SIGUSR2)
	b.awaitCount("reload finished", 2)
	talk()
	if n := len(b.log("worker exited")); n != 2 { // of the generation between: it had no clients
		b.awaitCount("worker exited", 2)
	}
	for _, l := range b.log("worker exited") {
		if l.Generation != 2 {
			t.Errorf("worker of generation %d left its clients", l.Generation)
		}
	}
	for _, c := range sockets {
		c.Close(websocket.StatusNormalClosure, "")
	}
	b.awaitCount("worker exited", 4)
}

// TestStop: SIGTERM finishes what is open and parked, and exits with status 0.
func TestStop(t *testing.T) {
	t.Parallel()
	gate := t.TempDir() + "/gate"
	b := start(t, 1, options{worker: []string{"gate", gate}, notReady: true})
	b.await("worker started")
	files := b.files()
	parked := b.open(source(0), 5)
	if !eventually(func() bool { return b.files() >= files+5 }) {
		t.Fatal("nothing is parked")
	}
	b.signal(unix.SIGTERM)
	b.await("stopping")
	if variantOf(t).route != "kernel" { // else the first packet is lost until the end
		if conn, err := b.dial(source(0)); err == nil {
			// It may have been in the backlog. Then it is served too.
			parked = append(parked, conn)
			request(conn, "/")
		}
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, conn := range parked {
		if a, err := response(conn); err != nil || a.status != http.StatusOK {
			t.Errorf("parked client %d: %+v, %v", i, a, err)
		}
	}
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
	if _, err := b.dial(source(0)); err == nil {
		t.Error("somebody still listens")
	}
}

// TestStopWithRequestInFlight: it is answered.
func TestStopWithRequestInFlight(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{})
	slow, err := b.dial(source(0))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	request(slow, "/sleep/300ms")
	b.mustGet(source(0), "/")
	b.signal(unix.SIGINT)
	if a, err := response(slow); err != nil || a.status != http.StatusOK {
		t.Errorf("%+v, %v", a, err)
	}
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}

// TestStopStubbornWorker: drain, then SIGTERM, then SIGKILL; and all is reaped.
func TestStopStubbornWorker(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{worker: []string{"stubborn"}, flags: []string{"--stop-timeout", "50ms", "--kill-timeout", "50ms"}})
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
	for message, want := range map[string]int{"worker drains": 2, "worker sent SIGTERM": 2, "worker sent SIGKILL": 2, "worker exited": 2} {
		if n := len(b.log(message)); n != want {
			t.Errorf("%q was logged %d times, want %d", message, n, want)
		}
	}
}

// TestStopTwice: a second signal does not wait, unless it comes so soon that it must be the first one by another way.
func TestStopTwice(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{worker: []string{"stubborn"}})
	begin := time.Now()
	b.signal(unix.SIGTERM)
	b.await("stopping")
	time.Sleep(sameStop)
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitFailure {
		t.Errorf("exit status %d", status)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestStopUnderLoad: whoever was connected when the balancer was told to stop is served,
// also who sends its request only then, within balancer.LastGrace. Later ones cannot connect.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	stopUnderLoad(t)
	stopUnderLoad(t, "--behind-proxy")
}

func stopUnderLoad(t *testing.T, flags ...string) {
	b := start(t, 2, options{race: true, flags: flags})
	var all sync.WaitGroup
	var served atomic.Int64
	for i := range 16 {
		all.Go(func() {
			for {
				began := time.Now()
				conn, err := b.dial(source(i))
				if err != nil {
					return // refused
				}
				if i%2 == 1 {
					time.Sleep(time.Millisecond) // a slow client, not a wait for anything
				}
				request(conn, "/")
				took := time.Since(began) // no more is promised, and a busy machine makes clients slow
				if a, err := response(conn); (err != nil || a.status != http.StatusOK) && took < balancer.LastGrace {
					t.Errorf("%v: client %d, whose request took %v: %+v, %v", flags, i, took, a, err)
				}
				conn.Close()
				served.Add(1)
			}
		})
	}
	if !eventually(func() bool { return served.Load() > 200 }) {
		t.Fatal("there is no load")
	}
	b.signal(unix.SIGTERM)
	all.Wait()
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}
