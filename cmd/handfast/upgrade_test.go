package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/master"
)

// upgrades replaces the balancer's program n times, one after the other.
func (b *instance) upgrades(n int) {
	b.t.Helper()
	b.upgradesTo(len(b.log("upgraded")) + n)
}

func (b *instance) workers(slots int) (pids []int) {
	for slot := range slots {
		pids = append(pids, b.worker(slot))
	}
	return pids
}

// TestUpgradeUnderLoad: upgrades, and no request fails, no worker is restarted, connections stay
// open, and clients stay with their workers. Nothing is left open in the master.
func TestUpgradeUnderLoad(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, _ string) {
		b := start(t, 2, options{lean: true})
		drains := b.socketFor(sourceIn(0, 2, 0))
		b.signal(unix.SIGUSR2)
		b.await("reload finished")
		before := b.workers(2)
		held := b.socketFor(sourceIn(1, 2, 0))
		b.upgrades(1)
		files := b.files()
		made, stop := b.load(8, "/", "/sleep/10ms", "/bytes/100000", "/sleep/500ms", "/")
		for i := range reloads(t, 8) {
			b.upgrades(1)
			if !eventually(func() bool { return made.Load() >= int64(5*i) || t.Failed() }) {
				t.Fatalf("only %d requests were answered during %d upgrades", made.Load(), i+1)
			}
		}
		stop()
		for name, c := range map[string]*websocket.Conn{"drains": drains, "serves": held} {
			if err := exchange(t.Context(), c, "still there"); err != nil {
				t.Errorf("the connection of the worker that %s: %v", name, err)
			}
			c.CloseNow()
		}
		for slot, pid := range before {
			if a := b.mustGet(sourceIn(slot, 2, 0), "/"); a.pid != pid || a.slot != slot {
				t.Errorf("a client of slot %d, worker %d, is served by %+v", slot, pid, a)
			}
		}
		if n := len(b.log("worker started")); n != 4 {
			t.Errorf("%d workers were started, want 4", n)
		}
		b.awaitCount("worker exited", 2) // they were replaced by the reload, one of them waited for its last connection
		if !eventually(func() bool { return b.files() <= files }) {
			t.Errorf("%d open files, after the first upgrade %d", b.files(), files)
		}
		b.signal(unix.SIGUSR2)
		b.awaitCount("reload finished", 2)
		if a := b.mustGet(sourceIn(0, 2, 0), "/"); a.generation != 3 {
			t.Errorf("generation %d after the second reload", a.generation)
		}
	})
}

// TestUpgradeThenKill: what lies in a worker's mailbox from before the upgrade is taken back, and
// the successor has the master's signals unblocked.
func TestUpgradeThenKill(t *testing.T) {
	t.Parallel()
	const clients = 50
	b := start(t, 2, options{})
	victim := b.worker(1)
	freeze(t, victim)
	files := b.files()
	waiting := b.open(sourceIn(1, 2, 0), clients)
	if !eventually(func() bool { return b.files() == files }) {
		t.Fatalf("the master has %d open files, at the start %d", b.files(), files)
	}
	b.upgrades(2)
	unix.Kill(victim, unix.SIGKILL)
	for i, conn := range waiting {
		if a, err := response(conn); err != nil || a.status != http.StatusOK || a.pid == victim {
			t.Fatalf("client %d: %+v, %v", i, a, err)
		}
	}
	if exited := b.await("worker exited"); exited.PID != victim || exited.Exit != "signal killed" {
		t.Errorf("the log says %s", exited.text)
	}
	b.awaitCount("worker ready", 3)
	if !blocksNothing(t, b.worker(1)) {
		t.Error("a worker that was started after an upgrade blocks signals")
	}
	b.signal(unix.SIGTERM)
	b.exit()
	if end := b.await("stopped"); end.Accepted != clients || end.TakenBack != clients || end.Refused != 0 {
		t.Errorf("counted over all programs: %s", end.text)
	}
}

// blocksNothing tells whether some thread of a process blocks no signal: a Go program has one that
// does, for package os/signal.
func blocksNothing(t *testing.T, pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	return slices.ContainsFunc(threads, func(file string) bool {
		status, _ := os.ReadFile(file)
		return strings.Contains(string(status), "SigBlk:\t0000000000000000\n")
	})
}

// TestUpgradeParked: a client that is parked, for want of a worker or of a request's head, or reads a refusal,
// stays through upgrades.
func TestUpgradeParked(t *testing.T) {
	t.Parallel()
	gate := filepath.Join(t.TempDir(), "gate")
	b := start(t, 1, options{
		worker: []string{"gate", gate}, notReady: true,
		flags: []string{"--behind-proxy", "--max-parked", "4", "--header-timeout", "20s"},
	})
	whole := b.open(source(0), 1)[0]
	half, err := b.dial(source(1))
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	fmt.Fprint(half, "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.9\r\n")
	parked := func(n int) {
		t.Helper()
		if !eventually(func() bool { return b.status().Totals.Parked == n }) {
			t.Fatalf("%d connections are parked, want %d", b.status().Totals.Parked, n)
		}
	}
	parked(2)
	more := b.open(source(2), 3) // of which one is too many
	parked(5)
	b.upgrades(2)
	parked(4) // who was refused has been waited for long enough
	refused := 0
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(half, "Connection: close\r\n\r\n")
	for i, conn := range append(more, whole, half) {
		a, err := response(conn)
		switch {
		case err == nil && a.status == http.StatusServiceUnavailable:
			refused++
		case err != nil || a.status != http.StatusOK:
			t.Errorf("client %d: %+v, %v", i, a, err)
		}
	}
	if refused != 1 {
		t.Errorf("%d clients were refused, want 1", refused)
	}
}

// TestUpgradeFails: a new program that does not come up changes nothing, and the log and the exit
// status say so.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	installed, config := filepath.Join(dir, "handfast"), filepath.Join(dir, "config.yaml")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	install := func(content []byte) {
		t.Helper()
		next := installed + ".next"
		program(t, next, content, 0o700)
		if err := os.Rename(next, installed); err != nil {
			t.Fatal(err)
		}
	}
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	install(self)
	configure("retry-delay: 50ms\n")
	b := start(t, 2, options{
		flags:  []string{"--config", config},
		change: func(cmd *exec.Cmd) { cmd.Path, cmd.Args[0] = installed, installed },
	})
	before, files := b.workers(2), b.files()
	_, stop := b.load(4, "/", "/sleep/5ms")
	for name, tt := range map[string]struct {
		program []byte
		config  string
		want    string
	}{
		"configuration": {self, "retry-delay: soon\n", "retry-delay"},
		"link":          {self, "worker-link: node\n", "an upgrade cannot change that"},
		"crash":         {[]byte("#!/bin/sh\necho out of luck; kill -SEGV $$\n"), "", "signal segmentation fault: out of luck"},
		"another":       {[]byte("#!/bin/sh\necho hello\n"), "", "is no handfast that can take over: hello"},
		"no program":    {[]byte("\x7fELF"), "", "exec format error"},
	} {
		install(tt.program)
		configure(tt.config)
		if out := b.begin("upgrade").ends(exitFailure); !strings.Contains(out, tt.want) || !strings.Contains(out, "does not come up") {
			t.Errorf("%s: %s", name, out)
		}
		if s := b.status(); s.Upgrade.Count != 0 || !strings.Contains(s.Upgrade.Error, tt.want) {
			t.Errorf("%s: status %+v", name, s.Upgrade)
		}
	}
	install(self)
	configure("retry-delay: 70ms\n")
	if out := b.begin("upgrade").ends(exitOK); !strings.Contains(out, "upgraded: ") {
		t.Errorf("a program that comes up: %s", out)
	}
	stop()
	if s := b.status(); s.Upgrade.Count != 1 || s.Upgrade.Error != "" || s.PID != b.cmd.Process.Pid {
		t.Errorf("status %+v", s.Upgrade)
	}
	if after := b.workers(2); !slices.Equal(before, after) {
		t.Errorf("workers were %v, are %v", before, after)
	}
	if !eventually(func() bool { return b.files() <= files+1 }) { // the program's own file system objects may differ by one
		t.Errorf("%d open files, before %d", b.files(), files)
	}
}

// TestUpgradeLinks: workers that know nothing of handfast go on, too: who has bound the port, and who
// has inherited listeners. Later ones start, and are told to finish, as before.
func TestUpgradeLinks(t *testing.T) {
	t.Parallel()
	under(t, variant{route: "kernel"})
	for name, start := range map[string]func(t *testing.T) *instance{
		"any": func(t *testing.T) *instance {
			return start(t, 2, options{variant: variant{link: "any"}, lean: true})
		},
		"activation": func(t *testing.T) *instance {
			return start(t, 2, options{
				lean:  true,
				flags: []string{"--worker-link", "activation"}, worker: []string{"activated"},
				change: func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "HANDFAST_TEST_LISTEN=inherited") },
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			before := b.workers(2)
			made, stop := b.load(4, "/", "/sleep/5ms")
			for i := range 3 {
				b.upgrades(1)
				if !eventually(func() bool { return made.Load() >= int64(5*i) || t.Failed() }) {
					t.Fatalf("only %d requests were answered during %d upgrades", made.Load(), i+1)
				}
			}
			for slot, pid := range before {
				if a := b.mustGet(sourceIn(slot, 2, 0), "/"); a.pid != pid {
					t.Errorf("a client of slot %d, worker %d, is served by %+v", slot, pid, a)
				}
			}
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			b.awaitCount("worker exited", 2)
			b.upgrades(1)
			stop()
			unix.Kill(b.worker(0), unix.SIGKILL)
			b.awaitCount("worker ready", 5)
			if a := b.mustGet(sourceIn(0, 2, 0), "/"); a.pid != b.worker(0) {
				t.Errorf("a client of slot 0, worker %d, is served by %+v", b.worker(0), a)
			}
		})
	}
}

// TestUpgradeConfiguration: the next program goes by the configuration as it is then: addresses to
// listen on, and the number of slots if that has changed there, not if it was scaled since.
func TestUpgradeConfiguration(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "config.yaml")
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old, next := trial.FreeAddress(t), trial.FreeAddress(t)
	configure("listen: [\"" + old + "\"]\nmax-parked: 7\n")
	b := start(t, 2, options{flags: []string{"--config", config}, change: func(cmd *exec.Cmd) {
		// A flag on the command line is not the file's to change.
		for _, name := range []string{"--workers", "--listen"} {
			i := slices.Index(cmd.Args, name)
			cmd.Args = slices.Delete(cmd.Args, i, i+2)
		}
		cmd.Env = append(cmd.Env, "HANDFAST_WORKERS=2")
	}})
	b.tell("scale", "3")
	b.awaitStatus("three slots", func(s *master.Status) bool { return s.Ready && len(s.Slots) == 3 })
	b.addr = old
	_, stop := b.load(2, "/", "/sleep/5ms")
	configure("listen: [\"" + old + "\", \"" + next + "\"]\n")
	b.tell("upgrade")
	if s := b.status(); len(s.Slots) != 3 || !slices.Contains(s.Addresses, next) || !slices.Contains(s.Addresses, old) {
		t.Errorf("%d slots, listening on %v", len(s.Slots), s.Addresses)
	}
	stop()
	b.addr = next
	_, stop = b.load(2, "/", "/sleep/5ms")
	configure("listen: [\"" + next + "\"]\n")
	b.tell("upgrade")
	stop()
	b.mustGet(source(1), "/")
	b.addr = old
	if !eventually(func() bool { _, err := b.get(source(1), "/"); return errors.Is(err, unix.ECONNREFUSED) }) {
		t.Errorf("%s is not closed", old)
	}
	if s := b.status(); !slices.Equal(s.Addresses, []string{next}) || s.Upgrade.Count != 2 {
		t.Errorf("listening on %v after %d upgrades", s.Addresses, s.Upgrade.Count)
	}
}

// TestUpgradeSignals: signals that come while the program is being replaced kill nobody, and wait for
// the next one.
func TestUpgradeSignals(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{lean: true})
	b.signal(unix.SIGHUP)
	sent := []syscall.Signal{unix.SIGTTIN, unix.SIGHUP, unix.SIGTTOU, unix.SIGUSR1}
	if !eventually(func() bool { // all the time, and as fast as they are heard
		b.signal(sent[0])
		sent = append(sent[1:], sent[0])
		time.Sleep(10 * time.Millisecond)
		return len(b.log("upgraded")) >= 6
	}) {
		t.Fatalf("%d upgrades", len(b.log("upgraded")))
	}
	if !eventually(func() bool { // the last one may be under way
		trying, over := len(b.log("trying the new program")), len(b.log("upgraded"))+len(b.log("not upgraded, this program goes on"))
		return trying == over
	}) {
		t.Error("an upgrade does not end")
	}
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}
