package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master"
)

// asking is a command that runs.
type asking struct {
	fdtest.Log // what it has written
	t          *testing.T
	status     int
	stop       context.CancelFunc
	ended      chan struct{}
}

// says waits until the command has written this.
func (a *asking) says(text string) {
	a.t.Helper()
	if !eventually(func() bool { return strings.Contains(a.String(), text) }) {
		a.t.Fatalf("the command does not say %q: %s", text, a)
	}
}

// ends waits for the end of the command, wants this exit status, and returns what it wrote.
func (a *asking) ends(status int) string {
	a.t.Helper()
	<-a.ended // within its patience
	if a.status != status {
		a.t.Fatalf("exit status %d, want %d: %s", a.status, status, a)
	}
	return a.String()
}

// begin runs a command: a handfast command and its arguments.
func begin(t *testing.T, args ...string) *asking {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	a := &asking{t: t, stop: cancel, ended: make(chan struct{})}
	go func() {
		defer close(a.ended)
		defer cancel()
		a.status = run(ctx, append([]string{"handfast"}, args...), a, a)
	}()
	return a
}

// begin asks this balancer.
func (b *instance) begin(command string, args ...string) *asking {
	return begin(b.t, append([]string{command, "--admin", b.admin}, args...)...)
}

// tell runs a command that has to succeed.
func (b *instance) tell(command string, args ...string) string {
	b.t.Helper()
	return b.begin(command, args...).ends(exitOK)
}

// status is what `handfast status --json` says.
func (b *instance) status() (s master.Status) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.tell("status", "--json")), &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// awaitStatus waits until the status is so.
func (b *instance) awaitStatus(what string, is func(s *master.Status) bool) (s master.Status) {
	b.t.Helper()
	if !eventually(func() bool { s = b.status(); return is(&s) }) {
		text, _ := json.Marshal(s)
		b.t.Fatalf("status does not show %s: %s", what, text)
	}
	return s
}

func known[T uint64 | int](n *T) string {
	if n == nil {
		return "unknown"
	}
	return fmt.Sprint(*n)
}

// byRoutes runs a test by each route.
func byRoutes(t *testing.T, test func(t *testing.T, route string)) {
	for _, route := range []string{"master", "kernel"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			under(t, variant{route: route})
			test(t, route)
		})
	}
}

// socketFor opens a WebSocket, which holds its connection open.
func (b *instance) socketFor(from netip.Addr) *websocket.Conn {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		conn, err := b.dial(from)
		if err == nil {
			conn.SetDeadline(time.Time{}) // it may be open for long
		}
		return conn, err
	}}
	c, _, err := websocket.Dial(ctx, "ws://"+b.addr+"/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.CloseNow() })
	return c
}

// exchange sends a message and wants it back.
func exchange(ctx context.Context, c *websocket.Conn, text string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		return err
	}
	if _, msg, err := c.Read(ctx); err != nil || string(msg) != text {
		return fmt.Errorf("%q, %w", msg, err)
	}
	return nil
}

// TestStatus: who is in the slots, what they have, and what nobody can know.
func TestStatus(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		b := start(t, 2, options{flags: []string{"--name", "api"}})
		home := sourceIn(1, 2, 0)
		for range 5 {
			b.mustGet(home, "/")
		}
		b.socketFor(home)
		s := b.awaitStatus("what the worker has", func(s *master.Status) bool {
			w := s.Slots[1].Worker
			return w != nil && known(w.Open) == "1" && known(w.Accepted) == "6"
		})
		if s.Name != "api" || s.PID != b.cmd.Process.Pid || !s.Ready || s.Route != route || s.Link != "native" || s.Key != "address" ||
			len(s.Addresses) != 1 || s.Addresses[0] != b.addr || s.Generation != 1 || s.Reload != nil || len(s.Draining) != 0 || s.Now.Before(s.Started) {
			t.Errorf("%+v", s)
		}
		handedOff, queue := []string{"0", "6"}, "unknown"
		if route == "kernel" {
			handedOff, queue = []string{"unknown", "unknown"}, "0"
		}
		for i, sl := range s.Slots {
			if sl.State != "serving" || !sl.InUse || sl.Slot != i || sl.Worker.PID != b.worker(i) || sl.Restarts != 0 || sl.LastEnd != nil ||
				known(sl.HandedOff) != handedOff[i] || known(sl.MailboxFull) == "unknown" != (route == "kernel") || known(sl.Queue) != queue || sl.Parked != 0 || sl.Refused != 0 {
				t.Errorf("slot %d: %+v", i, sl)
			}
		}
		text := b.tell("status")
		for _, want := range []string{"api ", "ready", "route " + route, b.addr, fmt.Sprint(b.worker(0)), fmt.Sprint(b.worker(1)), "RESTARTS"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if strings.Contains(text, "HANDED OFF") != (route == "master") || strings.Contains(text, "QUEUE") != (route == "kernel") {
			t.Errorf("figures that nobody knows:\n%s", text)
		}

		// A worker that was killed, and one that drains.
		was := b.worker(0)
		unix.Kill(was, unix.SIGKILL)
		s = b.awaitStatus("the restart", func(s *master.Status) bool {
			return s.Slots[0].Restarts == 1 && s.Slots[0].Worker != nil && s.Ready
		})
		if end := s.Slots[0].LastEnd; end == nil || end.PID != was || end.Why != "exited with signal killed" {
			t.Errorf("last end: %+v", end)
		}
		old := b.worker(1)
		b.tell("reload")
		s = b.awaitStatus("the worker that drains", func(s *master.Status) bool { return len(s.Draining) == 1 })
		if d := s.Draining[0]; d.PID != old || d.Slot != 1 || d.Generation != 1 || d.State != "draining" || known(d.Open) != "1" || d.Deadline == nil {
			t.Errorf("draining: %+v", d)
		}
		if text := b.tell("status"); !regexp.MustCompile(fmt.Sprintf(`(?m)^1 +draining +%d +1 `, old)).MatchString(text) {
			t.Error(text)
		}
	})
}

// TestStatusOfParked: those who wait are counted for their slot.
func TestStatusOfParked(t *testing.T) {
	t.Parallel()
	gate := t.TempDir() + "/gate"
	b := start(t, 1, options{worker: []string{"gate", gate}, notReady: true})
	waiting := b.open(source(0), 3)
	s := b.awaitStatus("who is parked", func(s *master.Status) bool { return len(s.Slots) == 1 && s.Slots[0].Parked == 3 })
	if s.Ready || s.Slots[0].State != "starting" || s.Slots[0].Next == nil || s.Totals.Parked != 3 {
		t.Errorf("%+v", s)
	}
	if text := b.tell("status"); !strings.Contains(text, "not ready: slot 0 is starting") {
		t.Error(text)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, conn := range waiting {
		if _, err := response(conn); err != nil {
			t.Error(err)
		}
	}
	b.awaitStatus("that nobody is", func(s *master.Status) bool { return s.Slots[0].Parked == 0 && s.Ready })
}

// Row C10: TestWatch: where there is no terminal the tables follow each other, without control
// sequences.
func TestWatch(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{})
	a := b.begin("status", "--watch", "--interval", "20ms")
	a.says(fmt.Sprint(b.worker(0)))
	b.tell("reload")
	b.awaitCount("worker ready", 2)
	a.says(fmt.Sprint(b.worker(0)))
	a.stop()
	text := a.ends(exitOK)
	if strings.Contains(text, "\x1b") || strings.Count(text, "SLOT") < 2 {
		t.Errorf("%q", text)
	}
	lines := b.begin("status", "--watch", "--json", "--interval", "20ms")
	lines.says("\n{")
	lines.stop()
	lines.ends(exitOK)
}

// TestReloadCommand waits, tells of each slot, and says whether the new version took over.
func TestReloadCommand(t *testing.T) {
	t.Parallel()
	broken := t.TempDir() + "/broken"
	b := start(t, 2, options{worker: []string{"broken", broken}})
	_, stop := b.load(4, "/", "/sleep/5ms")
	text := b.tell("reload")
	b.awaitCount("worker ready", 4)
	for slot := range 2 {
		if want := fmt.Sprintf("slot %d: worker %d serves (%d of 2)\n", slot, b.worker(slot), slot+1); !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if !strings.Contains(text, "2 slots run generation 2") {
		t.Error(text)
	}
	before := []int{b.worker(0), b.worker(1)}
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text = b.begin("reload").ends(exitFailure)
	if !strings.Contains(text, "status 3") || !strings.Contains(text, "slot 0") {
		t.Error(text)
	}
	s := b.status()
	if s.Slots[0].Worker.PID != before[0] || s.Slots[1].Worker.PID != before[1] || !strings.Contains(s.Reload.Error, "status 3") || !s.Ready {
		t.Errorf("%+v, workers were %v", s, before)
	}
	if text := b.tell("status"); !strings.Contains(text, "reload failed: slot 0") {
		t.Error(text)
	}
	os.Remove(broken)
	b.tell("reload")
	stop()
}

// TestTwoReloads: the second one follows the first, and both can be watched.
func TestTwoReloads(t *testing.T) {
	t.Parallel()
	gate := t.TempDir() + "/gate"
	open := func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open()
	b := start(t, 2, options{worker: []string{"gate", gate}})
	os.Remove(gate)
	first := b.begin("reload")
	first.says("slot 0: worker ")
	second := b.begin("reload")
	second.says("waiting for the reload in progress\n")
	s := b.status()
	if r := s.Reload; r == nil || r.Generation != 2 || r.Done != 0 || r.Slots != 2 || !r.Queued || r.Ended != nil || s.Slots[0].Next == nil || !s.Ready {
		t.Errorf("%+v, %+v", r, s.Slots[0])
	}
	if text := b.tell("status"); !strings.Contains(text, "reload: 0 of 2 slots since") || !strings.Contains(text, "another one follows") {
		t.Error(text)
	}
	if text := b.begin("drain", "0").ends(exitFailure); !strings.Contains(text, "a reload is in progress") {
		t.Error(text)
	}
	open()
	if text := first.ends(exitOK); !strings.Contains(text, "run generation 2") {
		t.Error(text)
	}
	if text := second.ends(exitOK); !strings.Contains(text, "run generation 3") || !strings.Contains(text, "(2 of 2)") {
		t.Error(text)
	}
}

// TestScaleCommand: under load, and nothing is lost.
func TestScaleCommand(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, _ string) {
		b := start(t, 2, options{})
		made, stop := b.load(8, "/", "/sleep/10ms", "/bytes/100000")
		were := 2
		for _, n := range []int{5, 1, 3, 2} {
			if text := b.tell("scale", fmt.Sprint(n)); text != fmt.Sprintf("%d slots (were %d)\n", n, were) {
				t.Error(text)
			}
			s := b.awaitStatus(fmt.Sprint(n, " slots in use"), func(s *master.Status) bool {
				return len(s.Slots) == n && s.Slots[n-1].InUse && s.Ready
			})
			before := made.Load()
			if !eventually(func() bool { return made.Load() > before+30 || t.Failed() }) {
				t.Fatalf("nothing is served: %+v", s)
			}
			were = n
		}
		stop()
		for args, want := range map[string]string{"0": "want at least 1", "100000": "want at most"} {
			if text := b.begin("scale", args).ends(exitFailure); !strings.Contains(text, want) {
				t.Error(text)
			}
		}
		if s := b.status(); s.Totals.Refused != 0 || len(s.Slots) != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestDrainCommand: a slot gets a fresh worker under load. Nothing is lost, its clients stay, the
// old worker finishes what it has, and others are not touched.
func TestDrainCommand(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, _ string) {
		broken := t.TempDir() + "/broken"
		b := start(t, 3, options{worker: []string{"broken", broken}})
		before := b.slotsOf(sources(30), 1)
		talk := b.socketFor(sourceIn(1, 3, 0))
		_, stop := b.load(8, "/", "/sleep/10ms", "/bytes/100000")
		old, others := b.worker(1), []int{b.worker(0), b.worker(2)}
		for round := range 3 {
			text := b.tell("drain", "1")
			b.awaitCount("worker ready", 4+round)
			if want := fmt.Sprintf("slot 1: worker %d serves\n", b.worker(1)); !strings.HasSuffix(text, want) {
				t.Errorf("no %q in %s", want, text)
			}
		}
		same(t, "drained", before, b.slotsOf(sources(30), 1))
		s := b.status()
		if s.Slots[0].Worker.PID != others[0] || s.Slots[2].Worker.PID != others[1] || s.Slots[1].Worker.PID == old || s.Generation != 1 || s.Reload != nil {
			t.Errorf("%+v", s)
		}
		if len(s.Draining) == 0 || s.Draining[0].PID != old || s.Draining[0].Slot != 1 {
			t.Errorf("the old worker has an open connection: %+v", s.Draining)
		}
		if err := exchange(t.Context(), talk, "still there"); err != nil {
			t.Error(err)
		}

		if err := os.WriteFile(broken, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if text := b.begin("drain", "1").ends(exitFailure); !strings.Contains(text, "slot 1 keeps what it had: worker exited with status 3") {
			t.Error(text)
		}
		if now := b.status(); now.Slots[1].Worker.PID != s.Slots[1].Worker.PID || !now.Ready {
			t.Errorf("%+v", now)
		}
		stop()
		if text := b.begin("drain", "3").ends(exitFailure); !strings.Contains(text, "no slot 3; there are 0 to 2") {
			t.Error(text)
		}
	})
}

// TestStopCommand waits until the master has gone; what is under way is served before.
func TestStopCommand(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{})
	slow, err := b.dial(source(0))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if err := request(slow, "/sleep/300ms"); err != nil {
		t.Fatal(err)
	}
	if text := b.tell("stop"); !strings.HasSuffix(text, "stopped\n") || alive(b.cmd.Process.Pid) {
		t.Errorf("alive: %v; %s", alive(b.cmd.Process.Pid), text)
	}
	if a, err := response(slow); err != nil || a.status != 200 {
		t.Errorf("in flight: %+v, %v", a, err)
	}
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
	if _, err := os.Lstat(b.admin); err == nil {
		t.Error("the socket stays")
	}
}

// TestStopNoWait: the answer comes while there is still something open.
func TestStopNoWait(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{})
	talk := b.socketFor(source(0))
	b.tell("stop", "--no-wait")
	s := b.awaitStatus("that it stops", func(s *master.Status) bool { return s.Stopping && len(s.Draining) == 1 })
	if s.Ready || !alive(b.cmd.Process.Pid) {
		t.Errorf("%+v", s)
	}
	if text := b.begin("reload").ends(exitFailure); !strings.Contains(text, "stopped") {
		t.Error(text)
	}
	waiting := b.begin("stop")
	waiting.says("workers that finish: 1\n")
	talk.Close(websocket.StatusNormalClosure, "")
	waiting.ends(exitOK)
	if alive(b.cmd.Process.Pid) {
		t.Error("it is alive")
	}
}

// TestAdminSocket: for nobody else, one for each, and replaced when its master was killed.
func TestAdminSocket(t *testing.T) {
	b := start(t, 1, options{})
	if info, err := os.Lstat(b.admin); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", info, err)
	}
	again := begin(t, "run", "--listen", "127.0.0.1:0", "--admin", b.admin, "--", "true").ends(exitFailure)
	if !strings.Contains(again, fmt.Sprintf("in use by pid %d", b.cmd.Process.Pid)) || !strings.Contains(again, "--admin") {
		t.Error(again)
	}
	b.tell("status")
	b.signal(unix.SIGKILL)
	<-b.exited
	if text := b.begin("status").ends(exitFailure); !strings.Contains(text, "no handfast answers") || !strings.Contains(text, b.admin) {
		t.Error(text)
	}
	next := start(t, 1, options{flags: []string{"--admin", b.admin}}) // it has two
	if s := b.status(); s.PID != next.cmd.Process.Pid {
		t.Errorf("pid %d answers, not %d", s.PID, next.cmd.Process.Pid)
	}
	next.tell("status")
}

// inRuntimeDirectory gives the masters and commands of a test a runtime directory of their own.
func inRuntimeDirectory(t *testing.T) (dir string) {
	dir = filepath.Dir(socketPath(t))
	t.Setenv("RUNTIME_DIRECTORY", dir)
	t.Setenv("HANDFAST_ADMIN", "")
	return dir
}

// Row C7: TestNames: by default the socket has the name's; a second master of the same name does not
// start, unless it wants no socket. Commands without a name go to the default one, else to the
// only one that runs; sockets of killed masters do not count, and are taken over.
func TestNames(t *testing.T) {
	dir := inRuntimeDirectory(t)
	first := start(t, 1, options{noAdmin: true})
	says := func(pid int, command ...string) {
		t.Helper()
		if text := begin(t, command...).ends(exitOK); !strings.Contains(text, fmt.Sprintf("pid %d", pid)) {
			t.Error(text)
		}
	}
	says(first.cmd.Process.Pid, "status")
	second := begin(t, "run", "--listen", "127.0.0.1:0", "--", "true").ends(exitFailure)
	for _, want := range []string{"--name handfast: a handfast of this name runs already", fmt.Sprintf("pid %d", first.cmd.Process.Pid), "another --name", "--admin off"} {
		if !strings.Contains(second, want) {
			t.Errorf("no %q in %s", want, second)
		}
	}
	start(t, 1, options{noAdmin: true, flags: []string{"--admin", "off"}}).mustGet(source(0), "/")
	third := start(t, 1, options{noAdmin: true, flags: []string{"--name", "third"}})
	says(third.cmd.Process.Pid, "status", "--name", "third")
	says(first.cmd.Process.Pid, "status")
	if text := begin(t, "status", "--name", "fourth").ends(exitFailure); !strings.Contains(text, "there are --name handfast, third") {
		t.Error(text)
	}
	if text := begin(t, "status", "--name", "a/b").ends(exitUsage); !strings.Contains(text, "--name") {
		t.Error(text)
	}
	first.signal(unix.SIGKILL)
	<-first.exited
	says(third.cmd.Process.Pid, "status") // the only one
	if text := begin(t, "status", "--name", "handfast").ends(exitFailure); !strings.Contains(text, "there are --name third") {
		t.Error(text)
	}
	fourth := start(t, 1, options{noAdmin: true, flags: []string{"--name", "fourth"}})
	if text := begin(t, "reload").ends(exitFailure); !strings.Contains(text, "several handfasts run: say --name fourth or --name third") {
		t.Error(text)
	}
	again := start(t, 1, options{noAdmin: true})
	says(again.cmd.Process.Pid, "status")
	fourth.signal(unix.SIGKILL)
	for _, stopped := range []*instance{again, third} {
		begin(t, "stop").ends(exitOK)
		if status := stopped.exit(); status != exitOK {
			t.Errorf("exit status %d", status)
		}
	}
	if text := begin(t, "status").ends(exitFailure); !strings.Contains(text, "no handfast answers at "+dir+"/handfast.sock") {
		t.Error(text)
	}
}

// Row C7: TestNameUpgrade: an upgrade goes on with the socket of its name, also if it is given an
// address beside it.
func TestNameUpgrade(t *testing.T) {
	inRuntimeDirectory(t)
	config := writeConfig(t, "log-level: debug")
	b := start(t, 1, options{noAdmin: true, flags: []string{"--config", config}})
	if err := os.WriteFile(config, []byte("admin: 127.0.0.1:0"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		begin(t, "upgrade").ends(exitOK)
		if text := begin(t, "status").ends(exitOK); !strings.Contains(text, fmt.Sprintf("pid %d", b.cmd.Process.Pid)) {
			t.Error(text)
		}
	}
}

// Row B6: TestAdminBeside: an address is added to the socket, which still takes all commands, also those
// that have the address in their environment; off or a path replaces it.
func TestAdminBeside(t *testing.T) {
	dir := inRuntimeDirectory(t)
	t.Setenv("HANDFAST_ADMIN", "0.0.0.0:0")
	b := start(t, 1, options{noAdmin: true})
	begin(t, "reload").ends(exitOK)
	at := b.awaitCount("admin socket", 2)
	if at[0].Address != dir+"/handfast.sock" || !strings.HasPrefix(at[1].Address, "0.0.0.0:") {
		t.Errorf("%+v", at)
	}
	_, port, _ := net.SplitHostPort(at[1].Address)
	if conn, err := net.Dial("tcp", "[::1]:"+port); err == nil {
		conn.Close()
		t.Error("0.0.0.0 is IPv6, too")
	}
	if text := begin(t, "reload", "--admin", at[1].Address).ends(exitFailure); !strings.Contains(text, "Unix socket") {
		t.Error(text)
	}
	for _, flags := range [][]string{{"--admin", "off", "--admin", "127.0.0.1:0"}, {"--admin", socketPath(t), "--admin", "127.0.0.1:0"}} {
		b := start(t, 1, options{noAdmin: true, flags: flags})
		b.admin = b.awaitCount("admin socket", len(flags)/2-strings.Count(flags[1], "off"))[0].Address
		if s := b.status(); s.PID != b.cmd.Process.Pid {
			t.Errorf("%q: %+v", flags, s)
		}
	}
}

// TestAdminTCP: only when it is asked for.
func TestAdminTCP(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{flags: []string{"--admin", "127.0.0.1:0"}})
	addr := b.awaitCount("admin socket", 2)[1].Address
	b.admin = addr
	if s := b.status(); s.PID != b.cmd.Process.Pid {
		t.Errorf("%+v", s)
	}
	b.tell("reload")
	b.tell("stop")
	b.exit()
	if text := b.begin("status").ends(exitFailure); !strings.Contains(text, "it has ended") {
		t.Error(text)
	}
}

// TestSlotCommand: the running master knows best; with --workers it is computed.
func TestSlotCommand(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		b := start(t, 3, options{flags: []string{"--hash-seed", "9"}})
		for from, slot := range b.slotsOf(sources(20), 1) {
			if text := b.tell("slot", from.String()); text != fmt.Sprint(slot)+"\n" {
				t.Errorf("%v: %s, want %d", from, text, slot)
			}
			if text := b.tell("slot", from.String(), "-n", "3", "--hash-seed", "9"); text != fmt.Sprint(slot)+"\n" {
				t.Errorf("%v: computed %s, want %d", from, text, slot)
			}
		}
		if text := b.begin("slot", "nobody").ends(exitFailure); !strings.Contains(text, "not an IP address") {
			t.Error(text)
		}
		if route == "kernel" {
			return
		}
		by := start(t, 5, options{flags: []string{"--behind-proxy", "--key", "header:X-User"}})
		computed := begin(t, "slot", "alice", "-n", "5", "--key", "header:X-User").ends(exitOK)
		if text := by.tell("slot", "alice"); text != computed {
			t.Errorf("%q, computed %q", text, computed)
		}
	})
	if n, err := strconv.Atoi(strings.TrimSpace(begin(t, "slot", "192.0.2.1").ends(exitOK))); err != nil || n < 0 {
		t.Errorf("alone: %d, %v", n, err)
	}
}

// TestAskingUsage: mistakes are told from failures.
func TestAskingUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args   string
		status int
		says   string
	}{
		{"status --admin /nowhere/x.sock", exitFailure, "/nowhere/x.sock"},
		{"status --admin x", exitUsage, "--admin"},
		{"status more", exitUsage, "no arguments"},
		{"status --admin off", exitUsage, "nobody answers"},
		{"reload more", exitUsage, "no arguments"},
		{"scale", exitUsage, "one N"},
		{"scale --admin /nowhere/x.sock many", exitUsage, `"many"`},
		{"drain --admin /nowhere/x.sock first", exitUsage, `"first"`},
		{"drain --now 1 --admin /nowhere/x.sock", exitUsage, "no arguments"},
		{"drain 1 --slot 1 --admin /nowhere/x.sock", exitUsage, "--now"},
		{"run --admin off --admin /x/y -- true", exitUsage, "--admin off"},
		{"run --admin x -- true", exitUsage, "--admin"},
		{"run --name a/b -- true", exitUsage, "--name"},
	} {
		if text := begin(t, strings.Fields(c.args)...).ends(c.status); !strings.Contains(text, c.says) {
			t.Errorf("%s: no %q in %s", c.args, c.says, text)
		}
	}
}
