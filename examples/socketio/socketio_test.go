// Package socketio_test runs the Socket.IO servers of this directory, and Python's, under the real
// command, and the clients that check what they promise, with the libraries from npm.
package socketio_test

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// few is how many clients make test has. HANDFAST_TEST_CLIENTS is how many, through ten reloads, directly and behind proxies.
const few = 30

// example is a way to run the server.
type example struct {
	server string
	flags  []string
	python func(t *testing.T, host, port string) []string // in place of server: its command

	node, dir string
}

// named: sessions name their worker. Nothing in the server is about that.
var named = []string{"--session", "engine.io", "--new-sessions", "least"}

// TestSessions: a session stays with its worker, whatever addresses its client comes from, on connections that it has for
// itself or shares, by long polling, WebSocket or both, and while the workers are replaced. Only a worker's death ends it.
func TestSessions(t *testing.T) {
	e := example{server: "server.js", flags: named}.install(t)
	t.Run("Direct", e.direct)
	for proxy, configuration := range map[*trial.Proxy]string{&trial.Nginx: "nginx-pool.conf", &trial.HAProxy: "haproxy-pool.cfg"} {
		t.Run(proxy.Name, func(t *testing.T) {
			if clients(t) == few {
				t.Skip("in make soak")
			}
			e.behind(t, *proxy, configuration)
		})
	}
}

// TestRedisAdapter: it is between the workers, and knows nothing of how they get their clients.
func TestRedisAdapter(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://"+trial.Redis(t))
	example{server: "server.js", flags: named}.install(t).direct(t)
}

// TestSticky: such a worker neither listens nor says that it is ready, but which sessions it keeps. Behind a proxy
// whose connections are for one request each the requests of those find it, too.
func TestSticky(t *testing.T) {
	example{server: "sticky.js"}.install(t).behind(t, trial.Nginx, "nginx-websocket.conf")
}

// TestGunicorn: the server is Flask-SocketIO's, which neither hands connections back nor is joined to the other workers.
func TestGunicorn(t *testing.T) {
	t.Setenv("ASYNC_MODE", "gevent")
	tryPython(t, func(t *testing.T, host, port string) []string {
		trial.NeedModule(t, "geventwebsocket", "python3-gevent-websocket")
		trial.NeedModule(t, "flask_socketio", "python3-flask-socketio")
		return []string{trial.Need(t, "gunicorn", "gunicorn"), "--chdir", "../flask-socketio", "-b", net.JoinHostPort(host, port),
			"-k", "geventwebsocket.gunicorn.workers.GeventWebSocketWorker", "app:app"}
	})
}

// TestUvicorn: the server is python-socketio's, for ASGI.
func TestUvicorn(t *testing.T) {
	tryPython(t, func(t *testing.T, host, port string) []string {
		trial.NeedModule(t, "socketio", "python3-socketio")
		trial.NeedModule(t, "uvicorn", "python3-uvicorn")
		trial.NeedModule(t, "wsproto", "python3-wsproto")
		return []string{trial.Python, "-m", "uvicorn", "--app-dir", "../flask-socketio", "--host", host, "--port", port, "--no-access-log", "asgi:app"}
	})
}

// tryPython: behind a proxy each request has a connection of its own.
func tryPython(t *testing.T, command func(t *testing.T, host, port string) []string) {
	if clients(t) == few {
		t.Skip("in make soak; ../flask-socketio has a reload")
	}
	e := example{flags: named, python: command}.install(t)
	t.Run("Direct", e.direct)
	t.Run("nginx", func(t *testing.T) { e.behind(t, trial.Nginx, "nginx-websocket.conf") })
	t.Run("haproxy", func(t *testing.T) { e.behind(t, trial.HAProxy, "haproxy-http.cfg") })
}

func (e example) install(t *testing.T) example {
	t.Helper()
	e.node, e.dir = trial.Install(t, "app.js", "server.js", "sticky.js", "clients.js")
	return e
}

// direct: clients come by IPv4, by IPv6, or by both.
func (e example) direct(t *testing.T) {
	_, port, _ := net.SplitHostPort(trial.FreeAddress(t))
	handfast := e.balance(t, ":"+port)
	e.try(t, handfast, "127.0.0.1:"+port, "--ipv6", "::1")
}

// behind: the proxy is the only peer, and clients are told apart by X-Forwarded-For.
func (e example) behind(t *testing.T, proxy trial.Proxy, configuration string) {
	proxy.Need(t)
	listen := trial.FreeAddress(t)
	handfast := e.balance(t, listen, "--behind-proxy", "--trusted-proxies", "127.0.0.1")
	front, address := proxy.Start(t, "../proxies/"+configuration, listen)
	e.try(t, handfast, address)
	front.StopWith(proxy.Stop)
}

func (e example) balance(t *testing.T, listen string, flags ...string) (handfast *trial.Process) {
	t.Helper()
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	command := []string{e.node, filepath.Join(e.dir, e.server)}
	if e.python != nil {
		command = e.python(t, cmp.Or(host, "::"), port)
	}
	t.Setenv("HOST", host)
	t.Setenv("PORT", port)
	flags = slices.Concat(flags, e.flags, []string{"--stop-timeout", "2s"})
	handfast, _ = trial.BalanceAt(t, listen, flags, command...)
	return handfast
}

// try has clients.js check what the clients see. A session is unknown only after the death of its worker.
func (e example) try(t *testing.T, handfast *trial.Process, address string, flags ...string) {
	t.Helper()
	flags = append(flags, "--workers", strconv.Itoa(trial.Workers), "--clients", strconv.Itoa(clients(t)),
		"--reload", strconv.Itoa(handfast.Process.Pid), "--crash")
	if e.python != nil {
		flags = append(flags, "--apart")
	}
	reloads := 1
	if clients(t) > few {
		reloads = 10
	}
	flags = append(flags, "--reloads", strconv.Itoa(reloads))
	p := trial.Start(t, e.node, slices.Concat([]string{filepath.Join(e.dir, "clients.js"), "http://" + address}, flags)...)
	for n := 1; n <= reloads; n++ { // each is given its time
		p.Await(fmt.Sprint("reload ", n), 1, func(line string) bool { return strings.HasPrefix(line, fmt.Sprintf("reload %d: ", n)) })
	}
	p.Finish()
	if n := p.Count(func(line string) bool { t.Log(line); return line == "all is well" }); n != 1 {
		t.Error("the clients do not say that all is well")
	}
	died := false
	unknown := handfast.Count(func(line string) bool {
		died = died || strings.Contains(line, `"exit":"signal killed"`)
		return !died && strings.HasPrefix(line, "connection error: ")
	})
	if unknown > 0 {
		t.Errorf("%d requests were refused before a worker died, want none", unknown)
	}
	handfast.Stop()
}

// clients returns how many there are.
func clients(t *testing.T) int {
	t.Helper()
	text := os.Getenv("HANDFAST_TEST_CLIENTS")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
