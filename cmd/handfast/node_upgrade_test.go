package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// upgradesTo replaces the master's program until that was done n times.
func (b *instance) upgradesTo(n int) {
	b.t.Helper()
	for i := len(b.log("upgraded")) + 1; i <= n; i++ {
		b.signal(unix.SIGHUP)
		if !eventually(func() bool {
			return len(b.log("upgraded")) == i || len(b.log("not upgraded, this program goes on")) > 0
		}) {
			b.t.Fatalf("no upgrade %d", i)
		}
		for _, l := range b.log("not upgraded, this program goes on") {
			b.t.Fatalf("upgrade %d: %s", i, l.text)
		}
	}
}

// noneStarted fails if there were more than n workers.
func (b *instance) noneStarted(n int) {
	b.t.Helper()
	if started := b.log("worker started"); len(started) != n {
		b.t.Errorf("%d workers were started, want %d", len(started), n)
	}
}

// counts has a worker say at its end how many connections it had.
const counts = `
	let connections = 0;
	server.on('connection', () => connections++);
	process.on('exit', () => say('connections', connections));
`

// wantConnections stops the balancer, whose workers had so many connections together.
func (b *instance) wantConnections(workers, want int) {
	b.t.Helper()
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		b.t.Errorf("exit status %d", status)
	}
	sum := 0
	for _, text := range b.hears("connections", workers) {
		var n int
		fmt.Sscanf(text, "connections %d", &n)
		sum += n
	}
	if sum != want {
		b.t.Errorf("workers had %d connections, clients made %d", sum, want)
	}
}

// TestNodeUpgradeUnderLoad: no request fails, none is served twice, no worker notices, and clients
// stay where they are.
func TestNodeUpgradeUnderLoad(t *testing.T) {
	t.Parallel()
	const workers = 2
	for name, test := range map[string]struct {
		script   string
		upgrades int
	}{
		"server":        {counts + plain, 5},
		"sticky-listen": {counts + stickyListen + ready, 4},
	} {
		t.Run(name, func(t *testing.T) {
			byRoutes(t, func(t *testing.T, _ string) {
				b := startNode(t, workers, test.script, nodeOptions{lean: true})
				before := b.slotsOf(sources(20), 1)
				made, stop := b.load(8, "/", "/sleep/10ms", "/sleep/300ms", "/")
				for i := range test.upgrades {
					b.upgradesTo(i + 1)
					last := made.Load()
					if !eventually(func() bool { return made.Load() >= last+20 || t.Failed() }) {
						t.Fatalf("only %d requests were answered after upgrade %d", made.Load()-last, i+1)
					}
				}
				stop()
				same(t, "upgrades", before, b.slotsOf(sources(20), 1))
				b.noneStarted(workers)
				b.wantConnections(workers, int(made.Load())+40)
			})
		})
	}
}

// TestNodeUpgradeStopped: a worker is stopped while its channel, our queue for it and the waitlist are
// full of connections. After upgrades it serves all of them, or its successor does.
func TestNodeUpgradeStopped(t *testing.T) {
	t.Parallel()
	const clients = 400
	takesSticky := stickySession + `process.on('message', handle);`
	for name, test := range map[string]struct {
		script, depends string
		then            unix.Signal
	}{
		"server":                    {plain, "", unix.SIGCONT},
		"server dies":               {plain, "", unix.SIGKILL},
		"sticky-session":            {takesSticky, "sticky-session", unix.SIGCONT},
		"sticky-session dies":       {takesSticky, "sticky-session", unix.SIGKILL},
		"server is drained":         {plain, "", unix.SIGUSR2},
		"sticky-session is drained": {takesSticky, "sticky-session", unix.SIGUSR2},
	} {
		t.Run(name, func(t *testing.T) {
			byRoutes(t, func(t *testing.T, route string) {
				if route == "kernel" && test.depends != "" {
					return // nothing is different: the master accepts for them
				}
				b := startNode(t, 2, test.script, nodeOptions{lean: true, depends: test.depends, flags: []string{"--max-retries", "300"}})
				b.upgradesTo(1) // what takes new files has taken them
				for slot := range 2 {
					b.mustGet(sourceIn(slot, 2, 0), "/")
				}
				files, stopped := b.files(), b.worker(1)
				freeze(t, stopped)
				waiting := b.open(sourceIn(1, 2, 0), clients)
				accepts := route == "kernel" && strings.HasPrefix(name, "server")
				if !accepts && !eventually(func() bool { return b.files() >= clients }) {
					t.Fatalf("the master has %d open files: what is not acknowledged it must keep", b.files())
				}
				b.upgradesTo(3)
				switch test.then {
				case unix.SIGUSR2: // those who were not sent go to the next one
					b.signal(unix.SIGUSR2)
					b.await("reload finished")
					b.upgradesTo(4)
					unix.Kill(stopped, unix.SIGCONT)
				default:
					unix.Kill(stopped, test.then)
				}
				bySuccessor := 0
				for i, conn := range waiting {
					a, err := response(conn)
					if err != nil || a.status != http.StatusOK || a.slot != 1 {
						t.Fatalf("client %d: %+v, %v", i, a, err)
					}
					if a.pid != stopped {
						bySuccessor++
					}
				}
				switch test.then {
				case unix.SIGCONT:
					if bySuccessor > 0 {
						t.Errorf("%d were served by another worker", bySuccessor)
					}
					b.noneStarted(2)
				case unix.SIGKILL:
					if bySuccessor != clients {
						t.Errorf("%d of %d were served by the successor", bySuccessor, clients)
					}
				}
				if test.then != unix.SIGUSR2 && !eventually(func() bool { return b.files() <= files }) {
					t.Errorf("%d files are open, at the start %d", b.files(), files)
				}
				if !accepts {
					b.stopClean(2 + clients)
				}
			})
		})
	}
}

// TestNodeUpgradeRelay: while workers talk to each other the program is replaced, and each hears
// all, in order. Who has asked before is answered after.
func TestNodeUpgradeRelay(t *testing.T) {
	t.Parallel()
	const upgrades = 5
	b := startNode(t, 3, chat+`
		let n = 0, talking;
		server.prependListener('request', (req) => {
			if (req.url === '/talk') talking = setInterval(() => emit(99, { n: n++, text: 'x'.repeat(1000) }), 1);
			if (req.url === '/hush') { clearInterval(talking); emit(99, { n: n++, last: true }); say('said', n); }
		});
	`, nodeOptions{lean: true})
	from := sourceIn(0, 3, 0)
	b.mustGet(from, "/talk")
	for i := range upgrades {
		b.upgradesTo(i + 1)
		b.mustGet(from, "/ask")
		b.hears("answered u0-1 u0-1 1", i+1)
		b.hears("answered u0-1 u0-1 2", i+1)
	}
	b.mustGet(from, "/hush")
	said := b.hears("said", 1)[0]
	all := b.hears("all", 2)
	slices.Sort(all)
	_, n, _ := strings.Cut(said, " ")
	if want := []string{"all 1 " + n, "all 2 " + n}; !slices.Equal(all, want) {
		t.Errorf("workers say %q and %q", said, all)
	}
	if gaps := b.said("gap"); len(gaps) > 0 {
		t.Errorf("workers miss messages: %q", gaps[:min(len(gaps), 5)])
	}
	b.noneStarted(3)
}

// TestNodeUpgradeRelayStopped: what waits for a worker that does not read, and the part of a message
// that it has read of, reach it after upgrades.
func TestNodeUpgradeRelayStopped(t *testing.T) {
	t.Parallel()
	const messages = 100 // of 64 KiB: less than is kept
	b := startNode(t, 2, chat, nodeOptions{lean: true})
	stopped := b.worker(1)
	freeze(t, stopped)
	b.mustGet(sourceIn(0, 2, 0), fmt.Sprint("/flood/", messages))
	b.mustGet(sourceIn(0, 2, 0), "/ask") // behind the flood, and so heard when that was
	b.upgradesTo(2)
	unix.Kill(stopped, unix.SIGCONT)
	if all, want := b.hears("all", 1)[0], fmt.Sprint("all 1 ", messages); all != want {
		t.Errorf("the worker says %q, want %q", all, want)
	}
	b.hears("answered u0-1 u0-1 1", 1)
	if gaps := b.said("gap"); len(gaps) > 0 {
		t.Errorf("the worker misses messages: %q", gaps)
	}
}

// TestNodeUpgradeSession: a session stays with its worker, also while that drains, and its end is
// still the end of the worker.
func TestNodeUpgradeSession(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, _ string) {
		b := startNode(t, 2, keepsSessions, nodeOptions{lean: true, flags: []string{"--ready-when", "started"}})
		first := b.beginsSession("first", 0)
		reaches := func(when string, from int) {
			t.Helper()
			if a := b.mustGet(sourceIn(from, 2, 0), "/?sid=first"); a.pid != first {
				t.Errorf("%s, from slot %d: %+v, want %d", when, from, a, first)
			}
		}
		b.upgradesTo(2)
		reaches("after an upgrade", 0)
		reaches("after an upgrade", 1)
		b.signal(unix.SIGUSR2)
		b.await("reload finished")
		b.exitsWell(1) // that without a session
		b.upgradesTo(4)
		reaches("draining", 0)
		reaches("draining", 1)
		if a := b.mustGet(sourceIn(0, 2, 0), "/"); a.generation != 2 || a.slot != 0 {
			t.Errorf("%+v", a)
		}
		b.mustGet(sourceIn(1, 2, 0), "/end?sid=first")
		b.exitsWell(2)
		if a := b.mustGet(sourceIn(1, 2, 0), "/?sid=first"); a.slot != 1 || a.generation != 2 {
			t.Errorf("after its end: %+v", a)
		}
	})
}

// TestNodeUpgradeListens: what workers share besides stays open, and at its path, until the end;
// later workers get it, too, and a number that no worker had.
func TestNodeUpgradeListens(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, _ string) {
		other, path := freeAddress(t), filepath.Join(t.TempDir(), "socket")
		b := startNode(t, 2, `
			const who = () => complain(net.createServer((c) => c.end(String(process.pid))));
			say('id', cluster.worker.id);
			who().listen(+otherPort, otherHost, () => who().listen(process.env.SOCKET, () => server.listen(PORT)));
		`, nodeOptions{lean: true, env: []string{"OTHER=" + other, "SOCKET=" + path}, flags: []string{"--min-uptime", "0s"}})
		for i := range 3 {
			b.upgradesTo(i + 1)
			bothAnswer(t, b, askStream("tcp", other))
			bothAnswer(t, b, askStream("unix", path))
			unix.Kill(b.worker(0), unix.SIGKILL)
			b.awaitCount("worker ready", 3+i)
		}
		bothAnswer(t, b, askStream("tcp", other))
		ids := b.hears("id", 5)
		if slices.Sort(ids); len(slices.Compact(ids)) != 5 {
			t.Errorf("workers call themselves %q", ids)
		}
		b.signal(unix.SIGTERM)
		b.exit()
		if _, err := os.Lstat(path); err == nil {
			t.Error("the path is left behind, and the next start would fail (EADDRINUSE)")
		}
	})
}

// TestNodeUpgradeReload: an upgrade replaces the program and not the workers; then a reload does.
func TestNodeUpgradeReload(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, _ string) {
		b := startNode(t, 2, plain, nodeOptions{lean: true})
		b.upgradesTo(2)
		open, err := b.dial(sourceIn(0, 2, 0))
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		request(open, "/sleep/1500ms")
		b.mustGet(sourceIn(0, 2, 0), "/") // which is accepted after it
		b.signal(unix.SIGUSR2)
		b.await("reload finished")
		b.upgradesTo(3) // while one drains
		if a, err := response(open); err != nil || a.generation != 1 {
			t.Errorf("%+v, %v", a, err)
		}
		b.exitsWell(2)
		if a := b.mustGet(sourceIn(0, 2, 0), "/"); a.generation != 2 || a.slot != 0 {
			t.Errorf("%+v", a)
		}
	})
}
