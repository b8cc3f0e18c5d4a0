package activation

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/foreigntest"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/supervisor"
)

// patience bounds what should happen soon.
const patience = 90 * time.Second

func TestMain(m *testing.M) {
	launch.Main()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process takes a second to exit
	os.Exit(m.Run())
}

var _ supervisor.Link = (*Link)(nil)

const wsgiText = `
def app(environ, start):
    start('200 OK', [('Content-Type', 'text/plain')])
    return [b'here']
`

const asgiText = `
async def app(scope, receive, send):
    if scope['type'] != 'http': return
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'here'})
`

const nginxText = `
daemon off;
error_log stderr;
pid %[1]s/pid;
events { worker_connections 100; }
http {
  access_log off;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
  server { listen %[2]s; location / { return 200 "here"; } }
}
`

const haproxyText = `
defaults
  mode http
  timeout client 30s
  timeout connect 30s
  timeout server 30s
frontend any
  bind fd@3
  http-request return status 200 content-type text/plain string here
`

const fpmText = `
[global]
error_log = %[1]s/log
daemonize = no
[www]
listen = %[2]s
pm = static
pm.max_children = 1
user = nobody
group = nogroup
`

// Programs that take an inherited socket, each in its own way, serve on it; and a second one
// comes up beside the first, on the same.
func TestServers(t *testing.T) {
	for name, command := range map[string]func(t *testing.T, dir, address string) []string{
		"gunicorn": func(t *testing.T, dir, _ string) []string {
			write(t, dir, "app.py", wsgiText)
			return []string{foreigntest.Need(t, "gunicorn"), "--chdir", dir, "app:app"}
		},
		"uvicorn": func(t *testing.T, dir, _ string) []string {
			write(t, dir, "app.py", asgiText)
			return []string{foreigntest.Need(t, "/usr/bin/python3", "python3"), "-m", "uvicorn", "--app-dir", dir, "--fd", "3", "app:app"}
		},
		"node": func(t *testing.T, dir, _ string) []string {
			return []string{foreigntest.Need(t, "node"), write(t, dir, "server.js", `require('http').createServer((q, a) => a.end('here')).listen({fd: 3})`)}
		},
		"nginx": func(t *testing.T, dir, address string) []string {
			return []string{foreigntest.Need(t, "nginx"), "-p", dir, "-c", write(t, dir, "nginx.conf", fmt.Sprintf(nginxText, dir, address))}
		},
		"haproxy": func(t *testing.T, dir, _ string) []string {
			return []string{foreigntest.Need(t, "haproxy"), "-db", "-f", write(t, dir, "haproxy.cfg", haproxyText)}
		},
		"php-fpm": func(t *testing.T, dir, address string) []string {
			found, _ := filepath.Glob("/usr/sbin/php-fpm*")
			return []string{foreigntest.Need(t, append(found, "php-fpm")...), "-n", "-F", "-y", write(t, dir, "fpm.conf", fmt.Sprintf(fpmText, dir, address))}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, address := listen(t)
			dir := t.TempDir()
			os.Chmod(filepath.Dir(dir), 0o755)
			first := start(t, Config{Listeners: []*os.File{file}}, command(t, dir, address)...)
			first.becomesReady()
			if name == "nginx" && !nonBlocking(t, file) {
				t.Error("its processes wait for each other in accept")
			}
			second := start(t, Config{Listeners: []*os.File{file}}, command(t, dir, address)...)
			second.becomesReady()
			first.end()
			if name == "php-fpm" {
				c, err := net.Dial("tcp", address) // it speaks FastCGI: an empty record of another version ends it
				fdtest.Check(t, err)
				defer c.Close()
				return
			}
			c, err := net.Dial("tcp", address)
			fdtest.Check(t, err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
			text, err := io.ReadAll(c)
			if err != nil || !strings.HasSuffix(string(text), "here") {
				t.Errorf("answer %q, error %v", text, err)
			}
		})
	}
}

// worker is a process with its link.
type worker struct {
	*Link
	supervisor.Process
	t     *testing.T
	ended bool
}

func start(t *testing.T, cfg Config, command ...string) *worker {
	t.Helper()
	program := programs.Resolve(command)
	cfg.Env, cfg.NonBlocking = program.InheritedEnv, cfg.NonBlocking || program.InheritsNonBlocking()
	l, err := Open(cfg)
	fdtest.Check(t, err)
	p, err := supervisor.StartProcess(supervisor.Spec{Command: l.Launch(command), Env: l.Env(os.Getenv), Files: l.Files()})
	fdtest.Check(t, err)
	w := &worker{Link: l, Process: p, t: t}
	t.Cleanup(w.end)
	return w
}

func (w *worker) becomesReady() {
	w.t.Helper()
	select {
	case <-w.Ready():
	case <-w.Left():
		w.t.Fatalf("left: %v", w.Err())
	case <-time.After(patience):
		w.t.Fatalf("not ready within %v", patience)
	}
}

func (w *worker) end() {
	if !w.ended {
		w.ended = true
		w.Signal(syscall.SIGKILL)
		w.Wait()
		w.Close()
	}
}

// listen opens a listener as it is to be: blocking.
func listen(t *testing.T) (*os.File, string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	file := os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { file.Close() })
	fdtest.Check(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	fdtest.Check(t, unix.Listen(fd, 100))
	at, err := unix.Getsockname(fd)
	fdtest.Check(t, err)
	return file, fmt.Sprint("127.0.0.1:", at.(*unix.SockaddrInet4).Port)
}

// nonBlocking tells whether O_NONBLOCK is on.
func nonBlocking(t *testing.T, file *os.File) (on bool) {
	t.Helper()
	raw, err := file.SyscallConn()
	fdtest.Check(t, err)
	fdtest.Check(t, raw.Control(func(fd uintptr) {
		var flags int
		flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0)
		on = flags&unix.O_NONBLOCK != 0
	}))
	fdtest.Check(t, err)
	return on
}

// A blocking socket stays so unless told otherwise, and what one worker has switched on, the
// start of another does not switch off.
func TestNonBlocking(t *testing.T) {
	file, _ := listen(t)
	const show = `test $(($(sed -n 's/flags://p' /proc/self/fdinfo/3) & 04000)) = `
	for _, tt := range []struct {
		nonBlocking bool
		want        string
	}{{false, "0"}, {true, "2048"}, {false, "2048"}} {
		w := start(t, Config{Listeners: []*os.File{file}, NonBlocking: tt.nonBlocking}, "sh", "-c", show+tt.want)
		if exit := w.Wait(); exit.Code != 0 {
			t.Errorf("non-blocking %v: not %s", tt.nonBlocking, tt.want)
		}
		w.ended = true
		w.Close()
	}
}

// Listeners are announced as systemd does, and by what the program looks for besides.
func TestEnviron(t *testing.T) {
	one, at := listen(t)
	two, beside := listen(t)
	hint := func(addresses []string, first int) []string { return []string{fmt.Sprint(addresses, first)} }
	for _, cfg := range []Config{{}, {Env: hint}} {
		cfg.Listeners = []*os.File{one, two}
		l, err := Open(cfg)
		fdtest.Check(t, err)
		want := []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=handfast:handfast"}
		if cfg.Env != nil {
			want = append(want, fmt.Sprint([]string{at, beside}, 3))
		}
		if got := l.Env(os.Getenv); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		l.Close()
	}
}

// A link whose worker cannot be given its listeners says so.
func TestLeft(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	one, _ := listen(t)
	two, _ := listen(t)
	l, err := Open(Config{Listeners: []*os.File{one, two}})
	fdtest.Check(t, err)
	command := append([]string{os.Args[0]}, l.Launch([]string{"true"})[1:]...)
	// Room for one listener besides what it has: three streams, three descriptors of ours.
	cmd := exec.Command("sh", append([]string{"-c", `ulimit -n 7; exec "$@"`, "sh"}, command...)...)
	cmd.ExtraFiles = l.Files()
	cmd.Run()
	select {
	case <-l.Left():
	case <-time.After(patience):
		t.Fatal("it has not left")
	}
	var failed *launch.Error
	if !errors.As(l.Err(), &failed) || failed.Step != launch.StepReceive {
		t.Errorf("error %v", l.Err())
	}
	l.Close()
	for end := time.Now().Add(patience); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("goroutines go on")
		}
	}
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	fdtest.Check(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}
