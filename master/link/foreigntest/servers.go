package foreigntest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/supervisor"
)

// Server is a program that knows nothing of us. Asked who it is, it answers "SLOT GENERATION
// CLIENT", from its environment and what accept has told it.
type Server struct {
	name    string
	command func(t testing.TB, dir string, port int) []string
	ask     func(st *Stage, client string, c net.Conn) (string, error) // nil: askHTTP
	Drain   syscall.Signal                                             // lets it finish what it has
	abrupt  bool                                                       // no signal does: it loses what it has
	hasty   bool                                                       // at its end it closes what it has accepted and not read from
	// known is one that the whole command is tried with, too: in examples/servers, and behind nginx in cmd/handfast.
	known bool
}

var servers = []*Server{
	{name: "python", Drain: syscall.SIGTERM, command: pythonServer},
	{name: "node", Drain: syscall.SIGTERM, command: nodeServer},
	{name: "go", Drain: syscall.SIGTERM, command: goServer},
	{name: "nginx", Drain: syscall.SIGQUIT, command: nginx("127.0.0.1:%d")},
	{name: "nginx-reuseport", Drain: syscall.SIGQUIT, command: nginx("127.0.0.1:%d reuseport")},
	{name: "gunicorn", known: true, Drain: syscall.SIGTERM, command: gunicorn},
	{name: "uvicorn", known: true, hasty: true, Drain: syscall.SIGTERM, command: uvicorn},
	{name: "apache2", known: true, Drain: syscall.SIGWINCH, command: apache},
	{name: "redis", known: true, abrupt: true, Drain: syscall.SIGTERM, command: redis, ask: askRedis},
	{name: "haproxy", Drain: syscall.SIGUSR1, command: haproxy},
	{name: "php", abrupt: true, Drain: syscall.SIGINT, command: phpServer},
	{name: "php-fpm", Drain: syscall.SIGQUIT, command: fpm, ask: askFPM},
	{name: "java-blocking", Drain: syscall.SIGTERM, command: java("blocking")},
	{name: "java-nio", Drain: syscall.SIGTERM, command: java("nio")},
	{name: "java-httpserver", known: true, Drain: syscall.SIGTERM, command: java("httpserver")},
}

// everything, if it is "all", has all servers tried.
const everything = "HANDFAST_TEST_SERVERS"

// TryServers has each server serve in a way of play's: clients stay with their slot, and are seen
// with their own addresses. Others start and take over while clients ask, and the old ones
// leave without losing one. Those that are known are left out, unless everything is tried.
func TryServers(t *testing.T, play func(*testing.T, *Server) *Stage) {
	for _, s := range servers {
		if s.known && os.Getenv(everything) != "all" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			st := play(t, s)
			for i := byte(1); i <= 30; i++ {
				if generation, err := st.want(fmt.Sprintf("127.1.2.%d", i), i); err != nil || generation != "1" {
					t.Errorf("generation %s, error %v", generation, err)
				}
			}
			const clients = 2
			stop := func() map[string]int { return nil }
			switch {
			case s.hasty: // each of the old processes may close each client's connection
				stop = st.load(clients, clients*Slots)
			case !s.abrupt:
				stop = st.load(clients, 0)
			}
			fdtest.Check(t, st.Reload(t.Context()))
			st.await(supervisor.WorkerExited, Slots)
			t.Logf("answers by generation: %v", stop())
			for i := byte(1); i <= 30; i++ {
				if generation, err := st.want(fmt.Sprintf("127.1.2.%d", i), i); err != nil || generation != "2" {
					t.Errorf("generation %s, error %v", generation, err)
				}
			}
		})
	}
}

// TryUnprivileged runs tests of this test binary as another user, without privileges: no CAP_SYS_ADMIN
// for the filter, none to look into processes. passes is how many tests that are, with their parents.
func TryUnprivileged(t *testing.T, pattern string, passes int) {
	if os.Getuid() != 0 {
		t.Skip("all tests are without privileges")
	}
	if testing.Short() {
		t.Skip("starts real servers")
	}
	t.Parallel()
	dir := Folder(t)
	self := filepath.Join(dir, "foreign.test")
	text, err := os.ReadFile(os.Args[0])
	fdtest.Check(t, err)
	syscall.ForkLock.RLock() // what is forked has the file open for writing, and it could not be run
	err = os.WriteFile(self, text, 0o755)
	syscall.ForkLock.RUnlock()
	fdtest.Check(t, err)
	home := filepath.Join(dir, "home")
	fdtest.Check(t, os.Mkdir(home, 0o755))
	const nobody = 65534
	fdtest.Check(t, os.Chown(home, nobody, nobody))
	goProgram := goServer(t, dir, 0)[0]
	cmd := exec.Command(self, "-test.run="+pattern, "-test.v")
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home, goServerEnv+"="+goProgram, everything+"=all", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if n := strings.Count(string(out), "--- PASS"); err != nil || os.Getenv("CI") != "" && n != passes {
		t.Errorf("as another user %d tests passed: %v\n%s", n, err, out)
	}
	t.Log(strings.Join(regexp.MustCompile(`(?m)^ *--- .*$`).FindAllString(string(out), -1), "\n"))
}

const pythonText = `
import os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text = '%s %s %s' % (os.environ['HANDFAST_SLOT'], os.environ['HANDFAST_GENERATION'], self.client_address[0])
        self.send_response(200)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *args): pass

class Server(ThreadingHTTPServer):
    daemon_threads = False

server = Server(('127.0.0.1', int(sys.argv[1])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
`

func pythonServer(t testing.TB, dir string, port int) []string {
	return []string{Python(t), write(t, dir, "server.py", pythonText), fmt.Sprint(port)}
}

// Python is Debian's, which has the packages.
func Python(t testing.TB) string { return Need(t, "/usr/bin/python3", "python3") }

const nodeText = `
const server = require('http').createServer((request, response) => {
  response.end([process.env.HANDFAST_SLOT, process.env.HANDFAST_GENERATION, request.socket.remoteAddress].join(' '))
}).listen(+process.argv[2], '127.0.0.1')
process.on('SIGTERM', () => server.close())
`

func nodeServer(t testing.TB, dir string, port int) []string {
	return []string{Need(t, "node"), write(t, dir, "server.js", nodeText), fmt.Sprint(port)}
}

const goText = `package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, os.Getenv("HANDFAST_SLOT"), " ", os.Getenv("HANDFAST_GENERATION"), " ", host)
	})}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	ln, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	go server.Serve(ln)
	<-ctx.Done()
	// Shutdown alone closes connections that have not made their first request.
	ln.Close()
	time.Sleep(500 * time.Millisecond)
	server.Shutdown(context.Background())
}
`

// goServerEnv names the program that the parent of this process has built, which has a build cache.
const goServerEnv = "HANDFAST_TEST_GO_SERVER"

// buildGo builds once for all that need it.
var buildGo = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "foreign")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(goText), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "build", "-o", "server", "main.go")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "server"))
})

func goServer(t testing.TB, dir string, port int) []string {
	if path := os.Getenv(goServerEnv); path != "" {
		return []string{path, fmt.Sprint("127.0.0.1:", port)}
	}
	Need(t, "go")
	text, err := buildGo()
	fdtest.Check(t, err)
	path := filepath.Join(dir, "server")
	fdtest.Check(t, os.WriteFile(path, text, 0o755))
	return []string{path, fmt.Sprint("127.0.0.1:", port)}
}

const nginxText = `
daemon off;
worker_processes 2;
error_log stderr;
events { worker_connections 100; }
http {
  access_log off;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
  server { listen %s; location / { return 200 "SLOT GENERATION $remote_addr"; } }
}
`

func nginx(listen string) func(testing.TB, string, int) []string {
	return func(t testing.TB, dir string, port int) []string {
		conf := write(t, dir, "nginx.conf", fmt.Sprintf(nginxText, fmt.Sprintf(listen, port)))
		return []string{"sh", "-c", `mkdir -p $0/$$; sed "s/SLOT/$HANDFAST_SLOT/; s/GENERATION/$HANDFAST_GENERATION/" $2 > $0/$$.conf
			exec $1 -p $0/$$ -c $0/$$.conf -g "pid $0/$$.pid;"`, dir, Need(t, "nginx"), conf}
	}
}

const wsgiText = `
import os

def app(environ, start):
    start('200 OK', [('Content-Type', 'text/plain')])
    return [('%s %s %s' % (os.environ['HANDFAST_SLOT'], os.environ['HANDFAST_GENERATION'], environ['REMOTE_ADDR'])).encode()]
`

func gunicorn(t testing.TB, dir string, port int) []string {
	write(t, dir, "app.py", wsgiText)
	return []string{Need(t, "gunicorn"), "--chdir", dir, "--worker-tmp-dir", dir, "-w", "2", "-b", fmt.Sprint("127.0.0.1:", port), "app:app"}
}

const asgiText = `
import os

async def app(scope, receive, send):
    if scope['type'] != 'http': return
    text = '%s %s %s' % (os.environ['HANDFAST_SLOT'], os.environ['HANDFAST_GENERATION'], scope['client'][0])
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': text.encode()})
`

func uvicorn(t testing.TB, dir string, port int) []string {
	write(t, dir, "app.py", asgiText)
	if exec.Command(Python(t), "-c", "import uvicorn").Run() != nil {
		Need(t, "uvicorn")
	}
	return []string{Python(t), "-m", "uvicorn", "--app-dir", dir, "--no-access-log", "--log-level", "warning", "--host", "127.0.0.1", "--port", fmt.Sprint(port), "app:app"}
}

const apacheText = `
ServerName test
ServerRoot %[1]s
Listen 127.0.0.1:%[2]d
LoadModule mpm_event_module %[3]s/mod_mpm_event.so
LoadModule authz_core_module %[3]s/mod_authz_core.so
LoadModule rewrite_module %[3]s/mod_rewrite.so
LoadModule headers_module %[3]s/mod_headers.so
StartServers 2
ServerLimit 4
ThreadsPerChild 8
MaxRequestWorkers 32
ErrorLog ${RUN}.log
LogLevel error
User nobody
Group nogroup
PidFile ${RUN}.pid
DocumentRoot %[1]s/www
RewriteEngine on
RewriteRule .* - [E=CLIENT:%%{REMOTE_ADDR}]
Header always set X-Who "${HANDFAST_SLOT} ${HANDFAST_GENERATION} %%{CLIENT}e"
`

func apache(t testing.TB, dir string, port int) []string {
	program := Need(t, "apache2")
	fdtest.Check(t, os.Mkdir(filepath.Join(dir, "www"), 0o755))
	write(t, filepath.Join(dir, "www"), "who", "see the header")
	conf := write(t, dir, "apache.conf", fmt.Sprintf(apacheText, dir, port, "/usr/lib/apache2/modules"))
	return []string{"sh", "-c", `RUN=$0/$$; export RUN; exec $1 -d $0 -f $2 -DFOREGROUND`, dir, program, conf}
}

func redis(t testing.TB, dir string, port int) []string {
	return []string{"sh", "-c", `exec $1 --bind 127.0.0.1 --port $2 --dir $0 --save "" --pidfile "$HANDFAST_SLOT $HANDFAST_GENERATION" --protected-mode no --loglevel warning`,
		dir, Need(t, "redis-server"), fmt.Sprint(port)}
}

func askRedis(_ *Stage, _ string, c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "CONFIG GET pidfile\r\nCLIENT INFO\r\nQUIT\r\n"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(c)
	found := regexp.MustCompile(`(?s)pidfile\r\n\$\d+\r\n([^\r]*)\r\n.* addr=([0-9.]+):`).FindSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("redis answers %.100q, error %w", text, err)
	}
	return fmt.Sprintf("%s %s", found[1], found[2]), nil
}

const haproxyText = `
global
  maxconn 200
defaults
  mode http
  timeout client 30s
  timeout connect 30s
  timeout server 30s
frontend any
  bind 127.0.0.1:%d
  http-request return status 200 content-type text/plain lf-string "%%[env(HANDFAST_SLOT)] %%[env(HANDFAST_GENERATION)] %%[src]"
`

func haproxy(t testing.TB, dir string, port int) []string {
	return []string{Need(t, "haproxy"), "-db", "-f", write(t, dir, "haproxy.cfg", fmt.Sprintf(haproxyText, port))}
}

const phpText = `<?php echo getenv('HANDFAST_SLOT'), ' ', getenv('HANDFAST_GENERATION'), ' ', $_SERVER['REMOTE_ADDR'];`

func phpServer(t testing.TB, dir string, port int) []string {
	return []string{Need(t, "php"), "-n", "-q", "-S", fmt.Sprint("127.0.0.1:", port), write(t, dir, "who.php", phpText)}
}

const fpmText = `
[global]
error_log = %[2]s/fpm.log
log_level = warning
daemonize = no
process_control_timeout = 10s
[www]
listen = 127.0.0.1:%[1]d
pm = static
pm.max_children = 2
clear_env = no
`

func fpm(t testing.TB, dir string, port int) []string {
	text := fmt.Sprintf(fpmText, port, dir)
	if os.Getuid() == 0 {
		text += "user = nobody\ngroup = nogroup\n"
	}
	write(t, dir, "who.php", phpText)
	found, _ := filepath.Glob("/usr/sbin/php-fpm*")
	return []string{Need(t, append(found, "php-fpm")...), "-n", "-F", "-y", write(t, dir, "fpm.conf", text)}
}

func askFPM(st *Stage, client string, c net.Conn) (string, error) {
	return AskFastCGI(c, filepath.Join(st.dir, "who.php"), client)
}

// AskFastCGI makes one FastCGI request for a script, and returns the body of the answer. The script is told the client's
// address by the request alone.
func AskFastCGI(c net.Conn, script, client string) (string, error) {
	var params []byte
	for _, p := range [][2]string{{"REQUEST_METHOD", "GET"}, {"SCRIPT_FILENAME", script}, {"REMOTE_ADDR", client}} {
		params = append(params, byte(len(p[0])), byte(len(p[1])))
		params = append(append(params, p[0]...), p[1]...)
	}
	record := func(kind byte, body []byte) []byte {
		head := []byte{1, kind, 0, 1, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(head[4:], uint16(len(body)))
		return append(head, body...)
	}
	const begin, param, stdin, stdout, end = 1, 4, 5, 6, 3
	request := record(begin, []byte{0, 1, 0, 0, 0, 0, 0, 0})
	request = append(request, record(param, params)...)
	request = append(request, record(param, nil)...)
	request = append(request, record(stdin, nil)...)
	if _, err := c.Write(request); err != nil {
		return "", err
	}
	var out []byte
	for r := bufio.NewReader(c); ; {
		head := make([]byte, 8)
		if _, err := io.ReadFull(r, head); err != nil {
			return "", err
		}
		body := make([]byte, int(binary.BigEndian.Uint16(head[4:]))+int(head[6]))
		if _, err := io.ReadFull(r, body); err != nil {
			return "", err
		}
		switch head[1] {
		case stdout:
			out = append(out, body[:len(body)-int(head[6])]...)
		case end:
			_, who, _ := strings.Cut(string(out), "\r\n\r\n")
			return who, nil
		}
	}
}

const javaText = `
import java.io.*;
import java.net.*;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.util.concurrent.*;

public class Server {
  static String who(InetAddress client) {
    return System.getenv("HANDFAST_SLOT") + " " + System.getenv("HANDFAST_GENERATION") + " " + client.getHostAddress();
  }

  static byte[] response(InetAddress client) {
    String body = who(client);
    return ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + body.length() + "\r\n\r\n" + body).getBytes();
  }

  static void atEnd(Runnable end) { Runtime.getRuntime().addShutdownHook(new Thread(end)); }

  // A thread waits in accept, and one for each connection.
  static void blocking(InetSocketAddress at) throws Exception {
    ServerSocket server = new ServerSocket();
    server.bind(at);
    ExecutorService pool = Executors.newCachedThreadPool();
    Thread main = Thread.currentThread();
    atEnd(() -> {
      try { server.close(); main.join(); pool.shutdown(); pool.awaitTermination(30, TimeUnit.SECONDS); } catch (Exception e) {}
    });
    while (true) {
      Socket c;
      try { c = server.accept(); } catch (SocketException e) { return; }
      pool.submit(() -> {
        try (c) {
          BufferedReader in = new BufferedReader(new InputStreamReader(c.getInputStream()));
          for (String line = in.readLine(); line != null && !line.isEmpty(); line = in.readLine());
          c.getOutputStream().write(response(c.getInetAddress()));
        } catch (IOException e) {}
      });
    }
  }

  // One thread waits for everything.
  static void nio(InetSocketAddress at) throws Exception {
    ServerSocketChannel server = ServerSocketChannel.open();
    server.bind(at);
    server.configureBlocking(false);
    Selector selector = Selector.open();
    server.register(selector, SelectionKey.OP_ACCEPT);
    Thread main = Thread.currentThread();
    boolean[] stopping = {false};
    atEnd(() -> { stopping[0] = true; selector.wakeup(); try { main.join(); } catch (Exception e) {} });
    while (true) {
      selector.select(100);
      if (stopping[0] && server.isOpen()) server.close();
      for (SelectionKey key : selector.selectedKeys()) {
        if (!key.isValid()) continue;
        if (key.isAcceptable()) {
          SocketChannel c = server.accept();
          if (c == null) continue;
          c.configureBlocking(false);
          c.register(selector, SelectionKey.OP_READ);
          continue;
        }
        SocketChannel c = (SocketChannel) key.channel();
        if (c.read(ByteBuffer.allocate(4096)) > 0) c.write(ByteBuffer.wrap(response(c.socket().getInetAddress())));
        c.close();
      }
      selector.selectedKeys().clear();
      if (stopping[0] && !server.isOpen() && selector.selectNow() == 0 && selector.keys().isEmpty()) return;
    }
  }

  static void httpserver(InetSocketAddress at) throws Exception {
    com.sun.net.httpserver.HttpServer server = com.sun.net.httpserver.HttpServer.create(at, 0);
    server.createContext("/", exchange -> {
      byte[] body = who(exchange.getRemoteAddress().getAddress()).getBytes();
      exchange.sendResponseHeaders(200, body.length);
      exchange.getResponseBody().write(body);
      exchange.close();
    });
    server.start();
    atEnd(() -> server.stop(2));
  }

  public static void main(String[] args) throws Exception {
    InetSocketAddress at = new InetSocketAddress("127.0.0.1", Integer.parseInt(args[1]));
    switch (args[0]) {
      case "blocking": blocking(at); break;
      case "nio": nio(at); break;
      default: httpserver(at);
    }
  }
}
`

// compileJava compiles once, and returns the classes by name.
var compileJava = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "foreign")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "Server.java"), []byte(javaText), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("javac", "-J-XX:TieredStopAtLevel=1", "Server.java")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	classes := make(map[string][]byte)
	found, err := filepath.Glob(filepath.Join(dir, "*.class"))
	for _, path := range found {
		if classes[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return classes, err
})

func java(kind string) func(testing.TB, string, int) []string {
	return func(t testing.TB, dir string, port int) []string {
		Need(t, "javac")
		classes, err := compileJava()
		fdtest.Check(t, err)
		for name, text := range classes {
			fdtest.Check(t, os.WriteFile(filepath.Join(dir, name), text, 0o644))
		}
		return []string{Need(t, "java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx64m", "-cp", dir, "Server", kind, fmt.Sprint(port)}
	}
}
