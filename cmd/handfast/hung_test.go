package main

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// lockServer serves one client after the other, until one asks for what makes it wait for ever.
const lockServer = `
import os, socket, sys, time
host, port = sys.argv[1].split(':')
s = socket.create_server((host, int(port)), backlog=100)
while True:
    c, peer = s.accept()
    if b' /lock ' in c.recv(65536):
        time.sleep(1e6)
    body = b'slot=0 pid=%d generation=1 client=%s\n' % (os.getpid(), peer[0].encode())
    c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' % (len(body), body))
    c.close()
`

// pidApp answers as the workers of the other tests do.
const pidApp = `
import os
def app(environ, start_response):
    body = b'slot=0 pid=%d generation=1 client=127.0.0.1\n' % os.getppid()
    start_response('200 OK', [('Content-Length', str(len(body)))])
    return [body]
`

// Row D6: a worker that hangs is found by what waits for it, whatever its link, and replaced; whoever waited is served by its successor.
// None of these workers answers pings. One that serves is left alone, and so is one that nobody comes to.
func TestHungByEveryLink(t *testing.T) {
	t.Parallel()
	stopped := func(b *instance) { // all of them, since they may be several processes
		freeze(b.t, b.worker(0))
		unix.Kill(-b.worker(0), unix.SIGSTOP)
	}
	locked := func(b *instance) {
		conn, err := b.dial(source(0))
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { conn.Close() })
		if err := request(conn, "/lock"); err != nil {
			b.t.Error(err)
		}
	}
	script := func(link, route string) options {
		address := trial.FreeAddress(t)
		return options{flags: []string{"--listen", address, "--worker-link", link, "--route", route}, change: instead(debianPython(t), "-c", lockServer, address)}
	}
	byNode := func(route string) func(t *testing.T, flags []string) *instance {
		return func(t *testing.T, flags []string) *instance {
			return startNode(t, 1, `server.listen(+PORT, '127.0.0.1');`, nodeOptions{flags: append(flags, "--route", route)})
		}
	}
	by := func(o options) func(t *testing.T, flags []string) *instance {
		return func(t *testing.T, flags []string) *instance {
			o.flags = append(o.flags, flags...)
			return start(t, 1, o)
		}
	}
	for name, hang := range map[string]struct {
		start func(t *testing.T, flags []string) *instance
		hang  func(b *instance)
	}{
		"any, kernel":    {by(script("any", "kernel")), locked},
		"any, master":    {by(script("any", "master")), locked},
		"node, kernel":   {byNode("kernel"), stopped},
		"node, master":   {byNode("master"), stopped},
		"native, kernel": {by(options{worker: []string{"old"}, flags: []string{"--route", "kernel"}}), stopped},
		"native, master": {by(options{worker: []string{"old"}}), stopped},
		"activation": {func(t *testing.T, flags []string) *instance {
			dir := t.TempDir()
			put(t, dir, "app.py", pidApp)
			return start(t, 1, options{
				flags: append(flags, "--listen", trial.FreeAddress(t), "--worker-link", "activation", "--route", "kernel"),
				change: func(cmd *exec.Cmd) {
					instead(trial.Need(t, "gunicorn", "gunicorn"), "--chdir", dir, "--worker-tmp-dir", filepath.Dir(dir), "app:app")(cmd)
				},
			})
		}, stopped},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it is a wait
			b := hang.start(t, []string{"--watchdog", "1s", "--when-hung", "replace", "--stop-timeout", "1s"})
			b.mustGet(source(0), "/")
			pid := b.worker(0)
			hang.hang(b)
			waiting := b.open(source(0), 3)
			if l := b.await("worker does not answer the watchdog"); l.PID != pid || !strings.Contains(l.text, `"replaced":true`) {
				t.Error(l.text)
			}
			for i, conn := range waiting {
				if a, err := response(conn); err != nil || a.status != http.StatusOK || a.pid == pid {
					t.Errorf("client %d: %+v, %v", i, a, err)
				}
			}
			if all := b.log("worker does not answer the watchdog"); len(all) > 1 {
				t.Error("again: " + all[1].text)
			}
		})
	}
}

// TestBusyIsNotHung: a server whose queue is never empty, since eight clients come again as soon as they were served, one at a time, is not
// hung, however long that lasts.
func TestBusyIsNotHung(t *testing.T) {
	t.Parallel()
	for _, route := range []string{"kernel", "master"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel() // it is a wait
			address := trial.FreeAddress(t)
			b := start(t, 1, options{
				flags:  []string{"--listen", address, "--worker-link", "any", "--route", route, "--watchdog", "1s", "--when-hung", "replace"},
				change: instead(debianPython(t), "-c", strings.Replace(lockServer, "    body", "    time.sleep(0.02)\n    body", 1), address),
			})
			served, stop := b.closedLoop(8, patience)
			if !eventually(func() bool { return served.Load() >= 150 }) { // three times as long as --watchdog
				t.Errorf("%d are served", served.Load())
			}
			stop()
			for _, l := range b.log("worker does not answer the watchdog") {
				t.Error(l.text)
			}
		})
	}
}
