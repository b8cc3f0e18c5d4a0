package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/master/sockdiag"
)

// startCareless runs a server that SIGTERM ends at once.
func startCareless(t *testing.T, flags ...string) *instance {
	t.Helper()
	address := trial.FreeAddress(t)
	return start(t, 1, options{
		flags:  append([]string{"--listen", address}, flags...),
		worker: []string{"careless"},
		change: func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "HANDFAST_TEST_LISTEN="+listenFor(address, flags)) },
	})
}

// listenFor is where the worker listens: nowhere, if it inherits its listener.
func listenFor(address string, flags []string) string {
	if flags[len(flags)-1] == "activation" {
		return ""
	}
	return address
}

// foreignLinks are the ways of connections to servers that know nothing of handfast.
var foreignLinks = map[string][]string{
	"any":        {"--route", "kernel", "--worker-link", "any"},
	"activation": {"--route", "kernel", "--worker-link", "activation"},
	"inject":     {"--route", "master", "--worker-link", "any"},
}

// TestDrainNone is row A7: a server that is not known to finish on a signal finishes its requests
// in a reload, and when handfast stops, which does not wait for connections that are only kept alive.
func TestDrainNone(t *testing.T) {
	t.Parallel()
	for name, flags := range foreignLinks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const stopTimeout = 100 * time.Second // less than patience
			b := startCareless(t, append([]string{"--stop-timeout", stopTimeout.String()}, flags...)...)
			first := b.worker(0)
			slow := b.askSlow(t, "/1500ms")
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			if a := <-slow; a.err != nil || a.pid != first {
				t.Errorf("a request during the reload: %v of worker %d, want worker %d", a.err, a.pid, first)
			}
			if l := b.await("worker exited"); l.PID != first {
				t.Errorf("worker %d has exited, want %d", l.PID, first)
			}

			second := b.worker(0)
			kept := b.keepAlive()
			defer kept.Close()
			slow = b.askSlow(t, "/1500ms")
			begin := time.Now()
			b.signal(unix.SIGTERM)
			if a := <-slow; a.err != nil || a.pid != second {
				t.Errorf("a request during the stop: %v of worker %d, want worker %d", a.err, a.pid, second)
			}
			if status := b.exit(); status != 0 || time.Since(begin) > stopTimeout-2*time.Second {
				t.Errorf("stopped with %d after %v", status, time.Since(begin))
			}
		})
	}
}

// TestDrainLost is row A7: a worker that dies of its drain signal, with a request that it has not
// answered, is named with the remedy, once.
func TestDrainLost(t *testing.T) {
	t.Parallel()
	const message = "worker died of its drain signal at once, with requests that it had not answered"
	for name, flags := range foreignLinks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startCareless(t, append([]string{"--drain-signal", "TERM"}, flags...)...)
			for n := range 2 {
				slow := b.askSlow(t, "/20s")
				b.signal(unix.SIGUSR2)
				b.awaitCount("worker exited", n+1)
				if a := <-slow; a.err == nil {
					t.Error("the request was answered")
				}
			}
			b.await(message)
			b.signal(unix.SIGTERM)
			b.exit()
			if n := len(b.log(message)); n != 1 {
				t.Errorf("said %d times, want once", n)
			}
		})
	}
}

// late is an answer that comes later.
type late struct {
	answer
	err error
}

// askSlow sends a request, which the worker has then, and returns where its answer comes.
func (b *instance) askSlow(t *testing.T, path string) <-chan late {
	t.Helper()
	conn, err := b.dial(source(0))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	if err := request(conn, path); err != nil {
		t.Fatal(err)
	}
	from, to := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	if !eventually(func() bool {
		all, err := sockdiag.ListTraffic(to.Port(), sockdiag.Established)
		i := slices.IndexFunc(all, func(s sockdiag.Socket) bool { return s.Remote == from && s.Local == to })
		return err == nil && i >= 0 && all[i].Accepted() && all[i].Received > 0 && all[i].Unread == 0
	}) {
		t.Fatalf("nobody has read the request for %s", path)
	}
	result := make(chan late, 1)
	go func() {
		defer conn.Close()
		a, err := response(conn)
		result <- late{a, err}
	}()
	return result
}

// keepAlive opens a connection that was answered a while ago.
func (b *instance) keepAlive() net.Conn {
	b.t.Helper()
	conn, err := b.dial(source(0))
	if err != nil {
		b.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := response(conn); err != nil {
		b.t.Fatal(err)
	}
	return conn
}

// hastyServer begins to answer when it has made a file, and answers a second and a half later. SIGTERM ends it at once.
const hastyServer = `
import http.server, sys, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        open(sys.argv[2], 'w').close(); time.sleep(1.5)
        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers(); self.wfile.write(b'ok')
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Slow).serve_forever()
`

// Row A7: TestDrainNoneFollows: a worker's connections are found as well where it has decided
// itself where handfast listens.
func TestDrainNoneFollows(t *testing.T) {
	t.Parallel()
	port, asked := portOf(t, trial.FreeAddress(t)), filepath.Join(t.TempDir(), "asked")
	b := runs(t, "--workers", "1", "--probation", "0s", "--", "/usr/bin/python3", "-c", hastyServer, port, asked)
	b.await("worker ready")
	answered := make(chan error, 1)
	go func() {
		response, err := http.Get("http://127.0.0.1:" + port)
		if err == nil {
			response.Body.Close()
		}
		answered <- err
	}()
	if !eventually(func() bool { _, err := os.Stat(asked); return err == nil }) {
		t.Fatal("the request does not arrive")
	}
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	if err := <-answered; err != nil {
		t.Errorf("a request during the reload: %v", err)
	}
	b.await("worker exited")
	http.DefaultClient.CloseIdleConnections()
	b.signal(unix.SIGTERM)
	<-b.exited
}
