package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// keepsSessions is a worker as @socket.io/sticky makes it: it takes connections from its
// primary, and reports the sessions that it begins and ends.
const keepsSessions = `
	process.on('message', ({ type, data }, socket) => {
		if (type === 'sticky:connection') { server.emit('connection', socket); socket.unshift(data); }
	});
	server.prependListener('request', (req, res) => {
		res.setHeader('Connection', 'close');
		const { pathname, searchParams } = new URL(req.url, 'http://a');
		if (pathname === '/begin') process.send({ type: 'sticky:connection', data: searchParams.get('name') });
		if (pathname === '/end') process.send({ type: 'sticky:disconnection', data: searchParams.get('sid') });
	});
`

// begins begins a session in a slot of two, and returns its worker when the master knows.
func (b *instance) beginsSession(name string, slot int) (pid int) {
	b.t.Helper()
	pid = b.mustGet(sourceIn(slot, 2, 0), "/begin?name="+name).pid
	if !eventually(func() bool { return b.mustGet(sourceIn(1-slot, 2, 0), "/?sid="+name).pid == pid }) {
		b.t.Fatal("a request of the session does not reach its worker")
	}
	return pid
}

// TestNodeSession: requests of a session reach the worker that keeps it, from whatever
// address, and also while that worker drains. It leaves when its last session has ended.
func TestNodeSession(t *testing.T) {
	t.Parallel()
	b := startNode(t, 2, keepsSessions, nodeOptions{flags: []string{"--ready-when", "started"}})
	first := b.beginsSession("first", 0)
	second := b.beginsSession("second", 1)
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	for slot := range 2 {
		from := sourceIn(slot, 2, 0)
		if a := b.mustGet(from, "/?sid=first"); a.pid != first || a.generation != 1 {
			t.Errorf("from slot %d: %+v, want %d", slot, a, first)
		}
		if a := b.mustGet(from, "/?sid=second"); a.pid != second {
			t.Errorf("from slot %d: %+v, want %d", slot, a, second)
		}
		for _, path := range []string{"/", "/?sid=unknown"} {
			if a := b.mustGet(from, path); a.slot != slot || a.generation != 2 {
				t.Errorf("%s from slot %d: %+v", path, slot, a)
			}
		}
	}
	if exited := b.log("worker exited"); len(exited) > 0 {
		t.Fatalf("a worker with a session left: %s", exited[0].text)
	}
	b.mustGet(sourceIn(1, 2, 0), "/end?sid=first")
	b.exitsWell(1)
	if a := b.mustGet(sourceIn(1, 2, 0), "/?sid=first"); a.slot != 1 || a.generation != 2 {
		t.Errorf("after its end: %+v", a)
	}
	b.mustGet(sourceIn(0, 2, 0), "/end?sid=second")
	b.exitsWell(2)
}

// TestNodeSessionDies: with its worker. Its requests go by their clients' addresses then,
// and the slot's next worker may begin it again.
func TestNodeSessionDies(t *testing.T) {
	t.Parallel()
	b := startNode(t, 2, keepsSessions, nodeOptions{flags: []string{"--ready-when", "started"}})
	unix.Kill(b.beginsSession("a", 0), unix.SIGKILL)
	b.awaitCount("worker ready", 3)
	if !eventually(func() bool { return b.mustGet(sourceIn(1, 2, 0), "/?sid=a").slot == 1 }) {
		t.Error("its requests do not go by their address")
	}
	b.beginsSession("a", 0)
}

// TestNodeSessionStop: when handfast stops, a session does not hold its worker up.
func TestNodeSessionStop(t *testing.T) {
	t.Parallel()
	b := startNode(t, 2, keepsSessions, nodeOptions{flags: []string{"--ready-when", "started", "--stop-timeout", "10m"}})
	b.beginsSession("a", 0)
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	b.beginsSession("b", 1)
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}
