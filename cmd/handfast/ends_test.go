package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/pgroup"
)

// instead runs another command than testworker.
func instead(command ...string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		cmd.Args = append(cmd.Args[:slices.Index(cmd.Args, "--")+1], command...)
	}
}

// Row A2: the first process of a worker is killed. Its children are told to finish, and end before
// long; none of them answers after that, after a reload or after a stop.
func TestOrphans(t *testing.T) {
	t.Parallel()
	wrapped := []string{"sh", "-c", `"$0" "$@"; true`}
	for name, start := range map[string]func(*testing.T) *instance{
		"nginx, any": func(t *testing.T) *instance {
			address := trial.FreeAddress(t)
			conf := put(t, t.TempDir(), "nginx.conf", fmt.Sprintf(`
daemon off; worker_processes 2; error_log stderr; pid nginx.pid;
events { worker_connections 100; }
http {
  access_log off;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
  server { listen %s; location / { return 200 "slot=0 pid=$pid generation=1 client=$remote_addr\n"; } }
}
`, address))
			return start(t, 1, options{
				flags:  []string{"--listen", address, "--worker-link", "any", "--route", "kernel"},
				change: instead(trial.Need(t, "nginx", "nginx"), "-p", t.TempDir(), "-c", conf),
			})
		},
		"wrapped, native": func(t *testing.T) *instance {
			return start(t, 1, options{
				flags:  []string{"--worker-link", "native"},
				change: instead(append(wrapped, trial.Build(t, testWorker), "http")...),
			})
		},
		"wrapped, node": func(t *testing.T) *instance {
			return startNode(t, 1, "server.listen(PORT)", nodeOptions{flags: []string{"--worker-link", "node"}, wrap: wrapped})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it is a wait
			b := start(t)
			first := b.worker(0)
			left := pgroup.Left(first, nil)[1:]
			client := source(0)
			unix.Kill(first, unix.SIGKILL)
			warned := b.await("worker has left processes behind, which are told to finish, and then killed")
			if text := strings.Join(strings.Fields(fmt.Sprint(left)), ","); warned.Level != "warn" || !strings.Contains(warned.text, text) {
				t.Errorf("%s, want %s", warned.text, text)
			}
			b.await("processes that the worker left behind have ended")
			b.awaitCount("worker ready", 2)
			if left := pgroup.Living(first); len(left) > 0 {
				t.Errorf("%v are left", left)
			}
			family := func() {
				t.Helper()
				for range 10 {
					a := b.mustGet(client, "/")
					if group, _ := unix.Getpgid(a.pid); group != b.worker(0) {
						t.Errorf("process %d answers, of group %d; the worker is %d", a.pid, group, b.worker(0))
					}
				}
			}
			family()
			second := b.worker(0)
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			eventually(func() bool { return !alive(second) })
			family()
			third := b.worker(0)
			b.signal(unix.SIGTERM)
			b.exit()
			if left := pgroup.Living(third); len(left) > 0 {
				t.Errorf("%v outlive the master", left)
			}
			if n := len(b.log("worker has left processes behind, which are told to finish, and then killed")); n != 1 {
				t.Errorf("that was logged %d times", n)
			}
		})
	}
}

// hadEnough is a server that ends by itself with status 0 when it has answered twice.
const hadEnough = `
import http.server, os, sys
host, port = sys.argv[1].split(':')
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'slot=0 pid=%d generation=1 client=%s\n' % (os.getpid(), self.client_address[0].encode()))
    def log_message(self, *args): pass
server = http.server.HTTPServer((host, int(port)), Handler)
server.handle_request()
server.handle_request()
`

// Row A13: servers that serve so many requests and then end (uvicorn --limit-max-requests) do not count
// as crashing: no client waits for a backoff.
func TestWorkerThatHadEnough(t *testing.T) {
	t.Parallel() // it is a wait
	address := trial.FreeAddress(t)
	b := start(t, 1, options{
		flags:  []string{"--listen", address, "--worker-link", "any", "--route", "kernel"},
		change: instead(debianPython(t), "-c", hadEnough, address),
	})
	pids := map[int]bool{}
	for i := range 12 {
		pids[b.mustGet(source(0), "/").pid] = true
		b.awaitCount("worker ready", 1+(i+1)/2)
	}
	if len(pids) != 6 {
		t.Errorf("%d processes answered, want 6", len(pids))
	}
	ends := b.awaitCount("worker exited", 5)
	for _, l := range ends {
		if l.Level != "info" || l.Exit != "status 0" {
			t.Errorf("%s", l.text)
		}
	}
	if log := b.log("workers keep dying young, next start is delayed"); len(log) > 0 {
		t.Errorf("%s", log[0].text)
	}
}

// finishesLast is a server that closes its listener when it is asked for /last, and takes its time to answer.
const finishesLast = `
import os, socket, sys, time
host, port = sys.argv[1].split(':')
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((host, int(port)))
s.listen(100)
while True:
    conn, peer = s.accept()
    last = b' /last ' in conn.recv(10000)
    if last:
        s.close()
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
    body = b'slot=0 pid=%d generation=1 client=%s\n' % (os.getpid(), peer[0].encode())
    conn.sendall(b'HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
    conn.close()
    if last:
        sys.exit(0)
`

// Row A13: the successor of a worker that had enough starts when that has closed its listener, not only
// when it has answered its last request; and that is not disturbed.
func TestWorkerThatFinishesLast(t *testing.T) {
	t.Parallel() // it is a wait
	address, gate := trial.FreeAddress(t), filepath.Join(t.TempDir(), "gate")
	b := start(t, 1, options{
		flags:  []string{"--listen", address, "--worker-link", "any", "--route", "kernel"},
		change: instead(debianPython(t), "-c", finishesLast, address, gate),
	})
	first := b.worker(0)
	last := make(chan answer, 1)
	go func() {
		a, err := b.get(source(0), "/last")
		if err != nil {
			t.Error(err)
		}
		last <- a
	}()
	if !eventually(func() bool { return b.mustGet(source(0), "/").pid != first }) {
		t.Error("there is no successor before the end of the last request")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if a := <-last; a.pid != first {
		t.Errorf("the last request: %+v, want it from %d", a, first)
	}
	b.awaitCount("worker exited", 1)
	for _, l := range append(b.log("worker exited"), b.log("worker takes no more connections")...) {
		if l.Level != "info" || l.PID != first || l.Exit != "" && l.Exit != "status 0" {
			t.Errorf("%s", l.text)
		}
	}
}

// Row C12: a program that throws tells its exit status, not that it disconnected; and a reload that
// failed does not change the generation.
func TestWorkerThatThrows(t *testing.T) {
	t.Parallel()
	b := startNode(t, 2, `
if (generation === '2') throw new Error('broken');
server.on('request', (req) => { if (req.url === '/throw') setImmediate(() => { throw new Error('thrown'); }); });
server.listen(PORT);`, nodeOptions{flags: []string{"--worker-link", "node"}})
	const want = "worker exited with status 1 before it was ready"
	if text := b.begin("reload").ends(exitFailure); !strings.Contains(text, "slot 0: "+want+"; ") {
		t.Errorf("reload says %s", text)
	}
	if failed := b.await("reload failed"); !strings.Contains(failed.Err, want) {
		t.Errorf("%s", failed.text)
	}
	s := b.status()
	if s.Generation != 1 || !strings.Contains(s.Reload.Error, want) {
		t.Errorf("generation %d, reload %+v", s.Generation, s.Reload)
	}
	if text := b.tell("status"); !strings.Contains(text, "\ngeneration 1, ") {
		t.Error(text)
	}
	was := b.worker(0)
	if a, err := b.get(sourceIn(0, 2, 0), "/throw"); err != nil || a.status != http.StatusOK {
		t.Fatal(a, err)
	}
	s = b.awaitStatus("the restart", func(s *master.Status) bool { return s.Slots[0].Restarts == 1 })
	if end := s.Slots[0].LastEnd; end.PID != was || end.Why != "exited with status 1" {
		t.Errorf("%+v", end)
	}
	for _, l := range b.log("worker exited") {
		if l.Level != "warn" || l.Exit != "status 1" {
			t.Errorf("%s", l.text)
		}
	}
	if log := b.log("worker takes no more connections"); len(log) > 0 {
		t.Errorf("%s", log[0].text)
	}
}
