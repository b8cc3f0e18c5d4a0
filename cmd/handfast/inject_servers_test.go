package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// plainServers are programs that know nothing of handfast, by name: what runs them at an address,
// with their files in a folder. They answer with their slot, or a line that begins with slot=.
var plainServers = map[string]func(t *testing.T, dir, address string) []string{
	"python": func(t *testing.T, dir, address string) []string {
		return []string{debianPython(t), put(t, dir, "server.py", `
import os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text = os.environ['HANDFAST_SLOT'].encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *args): pass
host, port = sys.argv[1].split(':')
ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
`), address}
	},
	"node": func(t *testing.T, dir, address string) []string {
		return []string{trial.Need(t, "node", "nodejs"), put(t, dir, "server.js", `
const [host, port] = process.argv[2].split(':')
require('http').createServer((request, response) => response.end(process.env.HANDFAST_SLOT)).listen(+port, host)
`), address}
	},
	"gunicorn": func(t *testing.T, dir, address string) []string {
		put(t, dir, "app.py", `
import os
def app(environ, start):
    start('200 OK', [('Content-Type', 'text/plain')])
    return [os.environ['HANDFAST_SLOT'].encode()]
`)
		return []string{trial.Need(t, "gunicorn", "gunicorn"), "--chdir", dir, "--worker-tmp-dir", dir, "-w", "2", "-b", address, "app:app"}
	},
	"go": func(t *testing.T, dir, address string) []string {
		return []string{trial.Build(t, "github.com/handfast/handfast/examples/servers/plain"), address}
	},
	"uvicorn": func(t *testing.T, dir, address string) []string {
		put(t, dir, "asgi.py", `
import os
async def app(scope, receive, send):
    if scope['type'] == 'http':
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': os.environ['HANDFAST_SLOT'].encode()})
`)
		host, port, _ := net.SplitHostPort(address)
		return []string{debianPython(t), "-m", "uvicorn", "--app-dir", dir, "--host", host, "--port", port,
			"--no-access-log", "--log-level", "error", "asgi:app"}
	},
	"java": func(t *testing.T, dir, address string) []string {
		_, port, _ := net.SplitHostPort(address)
		return []string{"env", trial.LightJava, trial.Need(t, "java", "default-jre-headless"), "-cp", trial.CompileJava(t, "../../examples/servers/Server.java"), "Server", port}
	},
	"apache2": func(t *testing.T, dir, address string) []string {
		file := put(t, dir, "apache.conf", fmt.Sprintf(`
ServerName localhost
Listen %s
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
StartServers 2
ServerLimit 4
ThreadsPerChild 8
MaxRequestWorkers 32
User nobody
Group nogroup
PidFile ${PLACE}.pid
ErrorLog ${PLACE}.log
DocumentRoot ${PLACE}
DirectoryIndex index
`, address))
		return []string{"sh", "-c", `export PLACE=$0/$$; mkdir $PLACE; printf %s "$HANDFAST_SLOT" > $PLACE/index
			exec $1 -d $0 -f $2 -DFOREGROUND`, dir, trial.Need(t, "apache2", "apache2"), file}
	},
	"nginx": func(t *testing.T, dir, address string) []string {
		file := put(t, dir, "nginx.conf", fmt.Sprintf(`
daemon off; worker_processes 2; error_log stderr;
events { worker_connections 100; }
http {
  access_log off;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
  server { listen %s; location / { return 200 "SLOT"; } }
}
`, address))
		return []string{"sh", "-c", `mkdir -p $0/$$; sed "s/SLOT/$HANDFAST_SLOT/" $2 > $0/$$.conf
			exec $1 -p $0/$$ -c $0/$$.conf -g "pid $0/$$.pid;"`, dir, trial.Need(t, "nginx", "nginx"), file}
	},
}

func debianPython(t *testing.T) string { return trial.Need(t, "/usr/bin/python3", "python3") }

func put(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestInjectServers: unmodified servers behind nginx stay with their clients, whom the header
// names, also over a reload.
func TestInjectServers(t *testing.T) {
	t.Parallel()
	for name, server := range plainServers {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "inject") // which also those can enter that give up their rights
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			os.Chmod(dir, 0o755)
			listen := trial.FreeAddress(t)
			handfast, _ := trial.BalanceAt(t, listen, []string{"--behind-proxy", "--worker-link", "any", "--trusted-proxies", "127.0.0.1"}, server(t, dir, listen)...)
			proxy, address := trial.Nginx.Start(t, "../../examples/proxies/nginx.conf", listen)
			sticky := func() {
				t.Helper()
				const clients = 40
				used := map[int]bool{}
				for i := range clients {
					client := trial.ClientAt(source(i))
					want := slotOf(source(i), trial.Workers)
					used[want] = true
					response, err := client.Get("http://" + address)
					if err != nil {
						t.Fatal(err)
					}
					body, err := io.ReadAll(response.Body)
					response.Body.Close()
					client.CloseIdleConnections()
					slot, _, _ := strings.Cut(strings.TrimPrefix(string(body), "slot="), " ")
					if err != nil || response.StatusCode != http.StatusOK || slot != fmt.Sprint(want) {
						t.Fatalf("client %v: %s %q, error %v; want slot %d", source(i), response.Status, body, err, want)
					}
				}
				if len(used) != trial.Workers {
					t.Errorf("%d slots are used", len(used))
				}
			}
			for range 2 {
				sticky()
			}
			handfast.Process.Signal(unix.SIGUSR2)
			handfast.AwaitReady(2 * trial.Workers)
			sticky()
			proxy.StopWith(trial.Nginx.Stop)
			handfast.Stop()
		})
	}
}

// TestInjectRedis: a server of another protocol, by the client's address.
func TestInjectRedis(t *testing.T) {
	t.Parallel()
	server := trial.Need(t, "redis-server", "redis-server")
	listen := trial.FreeAddress(t)
	host, port, _ := net.SplitHostPort(listen)
	handfast, _ := trial.BalanceAt(t, listen, []string{"--route", "master", "--worker-link", "any"},
		"sh", "-c", `exec $0 --bind $1 --port $2 --save "" --protected-mode no --pidfile "slot $HANDFAST_SLOT"`, server, host, port)
	for i := range 60 {
		client := source(i % 20)
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: client.AsSlice()}, Timeout: patience}
		conn, err := d.Dial("tcp", listen)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "CONFIG GET pidfile\r\nCLIENT INFO\r\nQUIT\r\n")
		text, err := io.ReadAll(bufio.NewReader(conn))
		conn.Close()
		if want := fmt.Sprint("slot ", slotOf(client, trial.Workers)); err != nil ||
			!strings.Contains(string(text), want) || !strings.Contains(string(text), "addr="+client.String()+":") {
			t.Errorf("client %v: %q, error %v; want %s", client, text, err, want)
		}
	}
	handfast.Stop()
}
