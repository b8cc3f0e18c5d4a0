// Package socketio_test runs the Socket.IO servers of this directory under the real
// command, and the clients that check what they promise, with the libraries from npm.
package socketio_test

import (
	"cmp"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

// clients is how many there are, unless the environment says it: ten of each of three kinds for each worker.
const clients = "90"

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// example is a way to run the server.
type example struct {
	server string
	sticky bool // written for @socket.io/sticky

	node, dir string
}

func TestClusterAdapter(t *testing.T) { example{server: "server.js"}.try(t) }

// TestRedisAdapter: it is between the workers. A proxy before them would change nothing.
func TestRedisAdapter(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://"+redis(t))
	example{server: "server.js"}.install(t).direct(t)
}

// TestSticky: such a worker neither listens nor says that it is ready. When it is replaced it
// gets the requests of its sessions until the last one ends. Then the adapter's timers
// keep it until it is killed.
func TestSticky(t *testing.T) { example{server: "sticky.js", sticky: true}.try(t) }

func (e example) install(t *testing.T) example {
	t.Helper()
	e.node, e.dir = trial.Install(t, "app.js", "server.js", "sticky.js", "clients.js")
	return e
}

func (e example) try(t *testing.T) {
	e = e.install(t)
	t.Run("Direct", e.direct)
	t.Run("BehindProxy", e.behindProxy)
}

func (e example) direct(t *testing.T) {
	handfast, address := e.balance(t)
	e.clients(t, handfast, address)
	handfast.Stop()
}

// behindProxy: nginx is the only peer, and clients are told apart by X-Forwarded-For.
func (e example) behindProxy(t *testing.T) {
	trial.Nginx.Need(t)
	handfast, address := e.balance(t, "--behind-proxy", "--trusted-proxies", "127.0.0.1")
	nginx, address := trial.Nginx.Start(t, "../proxies/nginx-websocket.conf", address)
	e.clients(t, handfast, address)
	nginx.StopWith(trial.Nginx.Stop)
	handfast.Stop()
}

func (e example) balance(t *testing.T, flags ...string) (handfast *trial.Process, address string) {
	t.Helper()
	listen := trial.FreeAddress(t)
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOST", host)
	t.Setenv("PORT", port)
	return trial.BalanceAt(t, listen, append(flags, "--stop-timeout", "2s"), e.node, filepath.Join(e.dir, e.server))
}

// clients run with a reload in the middle. No request is refused before. The old workers
// end when their clients have gone.
func (e example) clients(t *testing.T, handfast *trial.Process, address string) {
	t.Helper()
	args := []string{filepath.Join(e.dir, "clients.js"), "http://" + address,
		"--clients", cmp.Or(os.Getenv("HANDFAST_TEST_CLIENTS"), clients), "--workers", strconv.Itoa(trial.Workers), "--reload", strconv.Itoa(handfast.Process.Pid)}
	if e.sticky {
		args = append(args, "--keeps-sessions")
	}
	clients := trial.Start(t, e.node, args...)
	clients.Finish()
	if n := clients.Count(func(line string) bool { return line == "all is well" }); n != 1 {
		t.Error("the clients do not say that all is well")
	}
	reloading := false
	refused := handfast.Count(func(line string) bool {
		reloading = reloading || strings.Contains(line, `"reload started"`)
		return strings.HasPrefix(line, "connection error: ") && !(reloading && !e.sticky && line == "connection error: Session ID unknown")
	})
	if refused > 0 {
		t.Errorf("%d requests were refused, want none", refused)
	}
	if e.sticky {
		return
	}
	handfast.Await("end of the old workers", trial.Workers, func(line string) bool {
		var entry struct {
			Message    string `json:"@message"`
			Generation int
			Exit       string
		}
		return json.Unmarshal([]byte(line), &entry) == nil &&
			entry.Message == "worker exited" && entry.Generation == 1 && entry.Exit == "status 0"
	})
}

// redis starts a server that keeps nothing, and returns its address.
func redis(t *testing.T) (address string) {
	t.Helper()
	program, address := trial.Need(t, "redis-server", "redis-server"), trial.FreeAddress(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	server := trial.Start(t, program, "--bind", host, "--port", port, "--save", "", "--appendonly", "no", "--dir", t.TempDir())
	server.AwaitListening(address)
	t.Cleanup(server.Stop)
	return address
}
