package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// busyApp takes 20 ms for a request.
const busyApp = `
import time
def app(environ, start_response):
    time.sleep(0.02)
    start_response('200 OK', [('Content-Length', '3')])
    return [b'ok\n']
`

// busyLoop is a server that accepts, serves, and accepts again.
const busyLoop = `
import socket, time
s = socket.socket(fileno=3)
while True:
    c, _ = s.accept()
    c.recv(65536)
    time.sleep(0.02)
    c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n')
    c.close()
`

// Rows A1 and A3: servers that are never seen to wait, since eight clients come again as soon as
// they were served, one at a time. When such a worker is killed its successor is ready before
// long, and so is the new one of a reload; and no client is refused that has not waited for as long
// as it may. Those that bind the port are among the busy ones of examples/servers.
func TestBusyServers(t *testing.T) {
	t.Parallel()
	python := debianPython(t)
	for name, server := range map[string]func(t *testing.T) []string{
		"gunicorn": func(t *testing.T) []string {
			dir := t.TempDir()
			put(t, dir, "busy.py", busyApp)
			return []string{trial.Need(t, "gunicorn", "gunicorn"), "--chdir", dir, "busy:app"}
		},
		"loop": func(*testing.T) []string { return []string{python, "-c", busyLoop} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()                     // it is a wait
			const mayWait = 20 * time.Second // on a machine where other tests run
			b := start(t, 1, options{
				flags:  []string{"--listen", trial.FreeAddress(t), "--worker-link", "activation", "--route", "kernel", "--retry-delay", "20ms", "--max-retries", "1000"},
				change: instead(server(t)...),
			})
			served, stop := b.closedLoop(8, mayWait)
			advance := func(what string, n int64) {
				t.Helper()
				before := served.Load()
				if !eventually(func() bool { return served.Load() >= before+n || t.Failed() }) {
					t.Fatalf("%s: %d of %d are served", what, served.Load()-before, n)
				}
			}
			advance("at first", 20)

			began := time.Now()
			unix.Kill(-b.worker(0), unix.SIGKILL)
			b.awaitCount("worker ready", 2)
			if took := time.Since(began); took > mayWait {
				t.Errorf("the successor is ready after %v", took)
			}
			advance("after the kill", 20)

			began = time.Now()
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			if took := time.Since(began); took > mayWait {
				t.Errorf("reloaded after %v", took)
			}
			advance("after the reload", 20)
			stop()
			if n := len(b.log("reload failed")) + len(b.log("worker is not ready in time; it must accept connections or say ready")); n > 0 {
				t.Errorf("%d failures", n)
			}
		})
	}
}

// closedLoop is clients who come again as soon as they were served, until stop, and fails the test
// for each that is refused before it has waited for so long. Some are reset when their worker is
// killed.
func (b *instance) closedLoop(clients int, mayWait time.Duration) (served *atomic.Int64, stop func()) {
	served = new(atomic.Int64)
	over := make(chan struct{})
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				began := time.Now()
				status, err := b.once(i)
				switch waited := time.Since(began); {
				case err != nil: // the worker was killed
				case status == http.StatusOK:
					served.Add(1)
				case waited < mayWait:
					b.t.Errorf("a client is answered %d after %v", status, waited)
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { close(over); running.Wait() })
	b.t.Cleanup(stop)
	return served, stop
}

// once makes one request and returns the status of the answer.
func (b *instance) once(i int) (int, error) {
	conn, err := b.dial(source(i))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// deafServer hears no signal, and ends with status 3 if a connection that it was woken for is gone.
const deafServer = `
import os, select, signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
host, port = sys.argv[1].split(':')
s = socket.create_server((host, int(port)), backlog=100)
s.setblocking(False)
while True:
    select.select([s], [], [])
    try:
        c, _ = s.accept()
    except BlockingIOError:
        os._exit(3)
    c.setblocking(True)
    c.recv(65536)
    body = b'slot=0 pid=%d generation=1 client=%s\n' % (os.getpid(), c.getpeername()[0].encode())
    c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' % (len(body), body))
    c.close()
`

// Row D11: a worker that was replaced gets no connection any more, though it hears nothing of that,
// and it and the new one do not take connections from each other.
func TestReplacedGetsNothing(t *testing.T) {
	t.Parallel() // it is a wait
	address := trial.FreeAddress(t)
	b := start(t, 1, options{
		flags:  []string{"--listen", address, "--worker-link", "any", "--route", "kernel", "--drain-timeout", "1h", "--stop-timeout", "500ms", "--kill-timeout", "100ms"},
		change: instead(debianPython(t), "-c", deafServer, address),
	})
	served, stop := b.closedLoop(8, time.Hour)
	for i := range 2 {
		before := served.Load()
		old := b.worker(0)
		b.signal(unix.SIGUSR2)
		b.awaitCount("reload finished", i+1)
		if !alive(old) {
			t.Errorf("worker %d is gone", old)
		}
		for range 20 {
			if a := b.mustGet(source(0), "/"); a.pid == old {
				t.Fatalf("worker %d answers, which was replaced", old)
			}
		}
		if !eventually(func() bool { return served.Load() > before+50 }) {
			t.Fatal("nothing is served")
		}
	}
	stop()
	for _, l := range b.log("worker exited") {
		if l.Exit != "signal killed" { // as is one that has none left, if the test takes long
			t.Errorf("a worker was woken for nothing: %s", l.text)
		}
	}
}
