package main

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// manyServer is a server on several addresses, HOST/PORT. One of IPv6 takes no IPv4 if it begins with
// "only".
const manyServer = `
import http.server, socket, sys, threading
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers(); self.wfile.write(b'ok')
    def log_message(self, *args): pass
def serve(at):
    host, port = at.split('/')
    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
        def server_bind(self):
            if host.startswith('only'): self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            super().server_bind()
    return Server((host.removeprefix('only'), int(port)), Hello)
for server in [serve(at) for at in sys.argv[1:]]: threading.Thread(target=server.serve_forever).start()
`

// Row C4: without --listen, handfast listens where the workers do, on all their addresses and on no
// others; through a reload, a crash and an upgrade.
func TestFollow(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		listens, reaches, not string // of ports 1 and 2
	}{
		"localhost":           {"127.0.0.1/1", "127.0.0.1/1", "127.0.0.2/1 ::1/1"},
		"IPv6 localhost":      {"::1/1", "::1/1", "127.0.0.1/1"},
		"IPv4":                {"0.0.0.0/1", "127.0.0.1/1 127.0.0.2/1", "::1/1"},
		"all":                 {"::/1", "127.0.0.1/1 ::1/1", ""},
		"two ports":           {"127.0.0.1/1 0.0.0.0/2", "127.0.0.1/1 127.0.0.2/2", "127.0.0.2/1"},
		"each family":         {"0.0.0.0/1 only::/1", "127.0.0.1/1 ::1/1", ""},
		"each family, turned": {"only::/1 0.0.0.0/1", "127.0.0.1/1 ::1/1", ""},
		"IPv6 only":           {"only::/1", "::1/1", "127.0.0.1/1"},
		"both localhosts":     {"127.0.0.1/1 ::1/1", "127.0.0.1/1 ::1/1", "127.0.0.2/1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ports := []string{"0", portOf(t, trial.FreeAddress(t)), portOf(t, trial.FreeAddress(t))}
			at := func(text string) (all []string) {
				for word := range strings.FieldsSeq(text) {
					host, port, _ := strings.Cut(word, "/")
					all = append(all, host+"/"+ports[port[0]-'0'])
				}
				return all
			}
			b := runs(t, append([]string{"--workers", "2", "--probation", "0s", "--", "python3", "-c", manyServer}, at(test.listens)...)...)
			b.awaitCount("worker ready", 2)
			look := func() {
				t.Helper()
				for _, text := range []string{test.reaches, test.not} {
					for _, word := range at(text) {
						host, port, _ := strings.Cut(word, "/")
						reaches(t, host, port, text == test.reaches)
					}
				}
			}
			look()
			b.awaitCount("listening", len(at(test.listens)))
			if n := len(b.log("listening")); n != len(at(test.listens)) {
				t.Errorf("it listens on %d addresses", n)
			}
			if name != "two ports" {
				return
			}
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			look()
			b.signal(unix.SIGHUP)
			b.await("upgraded")
			look()
			kill(t, b.worker(0))
			b.awaitCount("worker ready", 5)
			look()
		})
	}
}

// Row C4: check says so.
func TestFollowCheck(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	run(t.Context(), []string{"handfast", "check", "--", "python3", "-m", "http.server", "8000"}, &out, &out)
	if !strings.Contains(out.String(), "run listens where the first worker does") || strings.Contains(out.String(), "--listen :8080") {
		t.Error(out.String())
	}
}

// Row C4: what a worker of another user may not bind, the master does not bind for it.
func TestFollowRights(t *testing.T) {
	t.Parallel()
	wrapper := network(t, "sysctl -qw net.ipv4.ip_unprivileged_port_start=1024;")
	for _, user := range []string{"nobody", "root"} {
		b := runsUnder(t, wrapper, "--workers", "1", "--user", user, "--", "python3", "-c", pythonServer, "127.0.0.1", "81")
		if user == "root" {
			b.await("worker ready")
		} else {
			b.says("cannot listen where a worker does", "say --listen", "permission denied")
		}
	}
}

// Row C4: where the address is somebody else's, the log says whose.
func TestFollowInUse(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	b := runs(t, "--workers", "1", "--", "python3", "-c", pythonServer, "127.0.0.1", port)
	b.says("cannot listen where a worker does", ln.Addr().String(), "address already in use", fmt.Sprint("pid ", unix.Getpid()))
}
