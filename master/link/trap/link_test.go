package trap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/supervisor"
)

var _ supervisor.Link = (*Link)(nil)

// actorText is a worker that does what it is told, line by line, and answers each with the value or
// the error.
const actorText = `
import ctypes, os, select, signal, socket, struct, sys, threading, time
from socket import *
libc = ctypes.CDLL(None, use_errno=True)
port = int(sys.argv[1])
def listening(s): return s.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
for line in sys.stdin:
    try: answer = eval(line)
    except SyntaxError: answer = exec(line)
    except OSError as e: answer = os.strerror(e.errno)
    print(answer, flush=True)
`

// actor is such a worker.
type actor struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

// acting is one that is given listeners.
type acting struct {
	*Link
	*actor
}

// act starts an actor under a link.
func act(t *testing.T, cfg Config, port int) *acting {
	t.Helper()
	goroutines := runtime.NumGoroutine()
	cfg.Logger = logger(t)
	l, err := Open(cfg)
	check(t, err)
	return &acting{l, stageActor(t, l, &l.child, goroutines, port)}
}

// stageActor starts an actor under a link of any kind.
func stageActor(t *testing.T, l supervisor.Link, child *child, goroutines, port int) *actor {
	t.Helper()
	command := l.Launch([]string{python(t), "-c", actorText, fmt.Sprint(port)})
	cmd := exec.Command(command[0], command[1:]...)
	cmd.ExtraFiles = l.Files()
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
		if !isClosed(child.ended) {
			l.Close()
		}
		eventually(t, "end of goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
	})
	return &actor{t, cmd, in, bufio.NewReader(out)}
}

// does has the actor do something and compares its answer.
func (a *actor) does(what, want string) {
	a.t.Helper()
	a.begin(what)
	a.ends(what, want)
}

// begin has the actor do something.
func (a *actor) begin(what string) {
	a.t.Helper()
	_, err := fmt.Fprintln(a.in, what)
	check(a.t, err)
}

// ends compares its answer.
func (a *actor) ends(what, want string) {
	a.t.Helper()
	got, err := a.out.ReadString('\n')
	check(a.t, err)
	if got = strings.TrimSpace(got); got != want {
		a.t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// listen opens a listener on "any", 0.0.0.0 and :: in one; or on an address.
func listen(t *testing.T, at string, port int) (*os.File, int) {
	t.Helper()
	family := unix.AF_INET6
	var name unix.Sockaddr = &unix.SockaddrInet6{Port: port}
	if ip := net.ParseIP(at).To4(); ip != nil {
		family, name = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte(ip)}
	}
	fd := socket(t, family)
	file := os.NewFile(uintptr(fd), at)
	t.Cleanup(func() { file.Close() })
	check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	if family == unix.AF_INET6 {
		check(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, map[bool]int{false: 1, true: 0}[at == "any"]))
	}
	check(t, unix.Bind(fd, name))
	check(t, unix.Listen(fd, 1000))
	bound, err := unix.Getsockname(fd)
	check(t, err)
	switch bound := bound.(type) {
	case *unix.SockaddrInet4:
		port = bound.Port
	case *unix.SockaddrInet6:
		port = bound.Port
	}
	return file, port
}

func inode(t *testing.T, file *os.File) uint64 {
	t.Helper()
	n, err := listening.Inode(file)
	check(t, err)
	return n
}

// has asks for the socket behind a descriptor of the actor's.
func (a *acting) has(variable string, file *os.File) {
	a.t.Helper()
	a.does(fmt.Sprintf("os.readlink('/proc/self/fd/%%d' %% %s.fileno())", variable), fmt.Sprintf("socket:[%d]", inode(a.t, file)))
}

// The server's socket becomes the slot's listener, with its own descriptor's flags. That is
// not yet ready: it must wait for connections.
func TestSwap(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	a.does("s = socket()", "None")
	a.does("s.bind(('127.0.0.1', port))", "None")
	a.has("s", file)
	a.does("s.getsockname() == ('127.0.0.1', port)", "True")
	a.does("s.get_inheritable(), s.getblocking(), os.get_blocking(s.fileno())", "(False, True, True)")
	a.does("c = socket()", "None")
	a.does("c.set_inheritable(True), c.setblocking(False)", "(None, None)")
	a.does("c.bind(('0.0.0.0', port))", "None") // as another process of the server would
	a.has("c", file)
	a.does("c.get_inheritable(), os.get_blocking(c.fileno())", "(True, False)")
	a.does("d = socket()", "None")
	a.does("d.bind(('', port))", "None") // a blocking one again, which would stop c's loop
	a.does("os.get_blocking(d.fileno())", "False")
	if isClosed(a.Ready()) {
		t.Error("it is ready without waiting for connections")
	}
	a.does("threading.Thread(target=select.select, args=([s], [], [])).start()", "None")
	eventually(t, "ready", func() bool { return isClosed(a.Ready()) })
}

// What is not the balancer's, the kernel decides as ever.
func TestOtherCallsPass(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	for what, want := range map[string]string{
		"(s := socket()).bind(('127.0.0.1', 0)) or s.listen() or listening(s)":                                                                         "1",
		"(s := socket()).bind(('127.0.0.2', port)) or listening(s)":                                                                                    "0",
		"(s := socket(AF_INET, SOCK_DGRAM)).bind(('127.0.0.1', port)) or s.getsockname() == ('127.0.0.1', port)":                                       "True",
		"(s := socket(AF_INET6, SOCK_DGRAM)).bind(('::', port))":                                                                                       "None",
		"(s := socket(AF_UNIX)).bind('\\0handfast%d' % port) or s.listen() or listening(s)":                                                            "1",
		"(s := socket(AF_NETLINK, SOCK_RAW)).bind((0, 0))":                                                                                             "None",
		"(s := socket(AF_INET6)).bind(('::1', port)) or listening(s)":                                                                                  "0",
		"libc.bind(999, ctypes.c_void_p(1), 16), os.strerror(ctypes.get_errno())":                                                                      "(-1, 'Bad file descriptor')",
		"libc.bind((s := socket()).fileno(), ctypes.c_void_p(1), 16), os.strerror(ctypes.get_errno())":                                                 "(-1, 'Bad address')",
		"libc.bind((s := socket()).fileno(), ctypes.c_void_p(1), 1 << 20), os.strerror(ctypes.get_errno())":                                            "(-1, 'Invalid argument')",
		"libc.bind(0, struct.pack('=H', 2) + struct.pack('>H', port) + bytes(12), 16), os.strerror(ctypes.get_errno())":                                "(-1, 'Socket operation on non-socket')",
		"libc.bind((s := socket(AF_INET6)).fileno(), struct.pack('=H', 2) + struct.pack('>H', port) + bytes(12), 16), os.strerror(ctypes.get_errno())": "(-1, 'Invalid argument')",
		"libc.listen(999, 5), os.strerror(ctypes.get_errno())":                                                                                         "(-1, 'Bad file descriptor')",
		"(p := socketpair())[0].shutdown(SHUT_RDWR) or p[1].recv(1)":                                                                                   "b''",
		"libc.syscall(425, 8, 0), os.strerror(ctypes.get_errno())":                                                                                     "(-1, 'Function not implemented')", // io_uring_setup
	} {
		a.does(what, want)
	}
	if a.isTaken() {
		t.Error("it has the slot's listener")
	}
}

func (l *Link) isTaken() bool { return l.awaited() != nil }

// What the server does to its socket must not be done to the slot's: a small backlog, and
// the end of it.
func TestSlotSurvivesItsServer(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	a.does("s = socket()", "None")
	a.does("s.bind(('127.0.0.1', port))", "None")
	a.does("s.listen(1)", "None")
	if n := backlog(t, file); n != 1000 {
		t.Errorf("backlog of %d", n)
	}
	for _, how := range []string{"SHUT_RD", "SHUT_WR", "SHUT_RDWR"} {
		a.does("s.shutdown("+how+")", "None")
		a.does("listening(s)", "1")
	}
	c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
	check(t, err)
	defer c.Close()
	a.does("s.accept()[1][0]", "127.0.0.1")
	// Its own connections it shuts down as it likes.
	a.does("c = create_connection(('127.0.0.1', port))", "None")
	a.does("c.shutdown(SHUT_RDWR) or s.accept()[0].recv(1)", "b''")
}

// backlog is how many connections a listener may have waiting (tcpi_sacked).
func backlog(t *testing.T, file *os.File) int {
	t.Helper()
	raw, err := file.SyscallConn()
	check(t, err)
	var info *unix.TCPInfo
	raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	check(t, err)
	return int(info.Sacked)
}

// Where clients of both families come in at one listener, a server of IPv4 gets one of IPv4
// beside it, and sees their addresses as it expects them.
func TestFamilies(t *testing.T) {
	both, port := listen(t, "any", 0)
	var only atomic.Pointer[os.File]
	cfg := Config{Listeners: []*os.File{both}, IPv4: func(*os.File) (*os.File, error) {
		file, _ := listen(t, "0.0.0.0", port)
		only.Store(file)
		return file, nil
	}}
	t.Run("IPv6", func(t *testing.T) {
		a := act(t, cfg, port)
		a.does("s = socket(AF_INET6)", "None")
		a.does("s.bind(('::', port))", "None")
		a.has("s", both)
		a.does("c = create_connection(('127.0.0.1', port))", "None")
		a.does("s.accept()[1][0]", "::ffff:127.0.0.1")
		a.does("m = socket(AF_INET6)", "None")
		a.does("m.bind(('::ffff:0.0.0.0', port))", "None") // as Java does for IPv4
		a.has("m", both)
		if only.Load() != nil {
			t.Error("a listener of IPv4 was asked for")
		}
	})
	t.Run("IPv4", func(t *testing.T) {
		a := act(t, cfg, port)
		a.does("s = socket()", "None")
		a.does("s.bind(('0.0.0.0', port))", "None")
		a.has("s", only.Load())
		a.does("c = create_connection(('127.0.0.1', port))", "None")
		a.does("s.accept()[1][0]", "127.0.0.1")
		a.does("again = socket()", "None")
		a.does("again.bind(('0.0.0.0', port))", "None")
		a.has("again", only.Load())
		a.does("s.listen(1)", "None")
		if n := backlog(t, only.Load()); n != 1000 {
			t.Errorf("backlog of %d", n)
		}
		a.does("threading.Thread(target=s.accept).start()", "None")
		eventually(t, "ready", func() bool { return isClosed(a.Ready()) })
	})
}

// Row B2: a server for localhost, or for one address, does not get the clients of all. It fails when
// the supervisor has heard why, and tells it to finish.
func TestNarrower(t *testing.T) {
	for server, bind := range map[string]string{
		"127.0.0.1:%d":   "socket().bind(('127.0.0.1', port))",
		"[::1]:%d":       "socket(AF_INET6).bind(('::1', port))",
		"127.0.0.2:%d":   "socket(AF_INET6).bind(('::ffff:127.0.0.2', port))",
		"203.0.113.1:%d": "socket().bind(('203.0.113.1', port))",
	} {
		t.Run(server, func(t *testing.T) {
			file, port := listen(t, "any", 0)
			a := act(t, Config{Listeners: []*os.File{file}}, port)
			a.begin(bind)
			eventually(t, "left", func() bool { return isClosed(a.Left()) })
			if err := a.Err().Error(); !strings.Contains(err, "only, handfast on [::]:") || !strings.Contains(err, "--listen "+fmt.Sprintf(server, port)) {
				t.Error(err)
			}
			a.Drain()
			a.ends(bind, "Cannot assign requested address")
			a.does("listening(socket())", "0")
			a.begin(bind) // whoever tries again is not left waiting
			a.ends(bind, "Cannot assign requested address")
			if a.isTaken() {
				t.Error("it has the slot's listener")
			}
		})
	}
}

// A slot with several listeners: each socket gets the one that it asks for, and the worker is
// ready when it waits on all.
func TestSeveralListeners(t *testing.T) {
	one, port := listen(t, "127.0.0.1", 0)
	two, _ := listen(t, "127.0.0.2", port)
	six, _ := listen(t, "::", port)
	a := act(t, Config{Listeners: []*os.File{six, one, two}}, port)
	a.does("s = [socket(), socket(), socket(AF_INET6)]", "None")
	a.does("s[0].bind(('127.0.0.2', port)), s[1].bind(('127.0.0.1', port))", "(None, None)")
	a.has("s[0]", two)
	a.has("s[1]", one)
	a.does("e = select.epoll()", "None")
	a.does("e.register(s[0]), e.register(s[1])", "(None, None)")
	for range 20 {
		if seen, _ := listening.Listening(a.roots(), a.awaited()); seen {
			t.Fatal("it is ready with a listener that nobody waits on")
		}
	}
	a.does("s[2].bind(('::', port))", "None")
	a.has("s[2]", six)
	a.does("e.register(s[2])", "None")
	eventually(t, "ready", func() bool { return isClosed(a.Ready()) })
}

// Row D2: a socket that epoll instances know before it is bound, as with Netty's epoll transport, is
// known to them afterwards, too, also where their numbers are taken in this process, and if a thread
// that is not the first one binds.
func TestRegisteredBeforeBind(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	files := openFiles(t) + 3                 // the runtime's poller
	for number := 20; number < 50; number++ { // some of them are taken here, one will be the epoll instance's
		a.does(fmt.Sprintf("n = %d; e = [select.epoll(), select.epoll()]; f = socket(); os.dup2(f.fileno(), n); f.close(); s = socket(fileno=n)", number), "None")
		a.does("e[0].register(n, 0), e[1].register(n, select.EPOLLIN | select.EPOLLET)", "(None, None)")
		a.does("b = threading.Thread(target=s.bind, args=(('127.0.0.1', port),)); b.start(); b.join()", "None")
		a.has("s", file)
		a.does("s.listen(), e[0].modify(n, select.EPOLLIN)", "(None, None)")
		c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
		check(t, err)
		a.does("[x.poll(30) == [(n, select.EPOLLIN)] for x in e]", "[True, True]")
		a.does("s.accept()[1][0]", "127.0.0.1")
		c.Close()
		a.does("e[1].unregister(n), e[0].unregister(n), e[0].close(), e[1].close(), s.close()", "(None, None, None, None, None)")
		eventually(t, "end of descriptors", func() bool { return openFiles(t) <= files })
	}
	if a.warned["the worker has registered its socket with epoll before it was bound, and that is lost"] {
		t.Error("it is said to be lost")
	}
}

// The data of an entry may be anything: Netty's is a number, Go's a pointer.
func TestParseInterest(t *testing.T) {
	const text = "pos:\t0\nflags:\t02\n" +
		"tfd:        5 events:       19 data:                5  pos:0 ino:1ce13 sdev:9\n" +
		"tfd:        6 events: 80002019 data: ffffffff00000006  pos:0 ino:1ce14 sdev:9\n"
	if got, ok := parseInterest(text, 6, 0x1ce14); !ok || got.events != 0x80002019 || got.data != 0xffffffff00000006 {
		t.Errorf("%+v, %v", got, ok)
	}
	event := interest{data: 0xffffffff00000006}.event()
	if *(*uint64)(unsafe.Pointer(&event.Fd)) != 0xffffffff00000006 {
		t.Errorf("%+v", event)
	}
	for fd, inode := range map[int]uint64{5: 0x1ce14, 6: 0x1ce13, 7: 0x1ce14} {
		if got, ok := parseInterest(text, fd, inode); ok {
			t.Errorf("%d: %+v", fd, got)
		}
	}
}

// Children of the worker, whatever became of their parents, are asked like it.
func TestDescendants(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	// A daemon: forked twice, its parent gone.
	a.does("os.fork() == 0 and (os.setsid(), os.fork() and os._exit(0), (s := socket()).bind(('127.0.0.1', port)), s.listen(), s.accept(), os._exit(0)); os.wait()", "None")
	eventually(t, "ready", func() bool { return isClosed(a.Ready()) })
	c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
	check(t, err)
	c.Close()
}

// The master's end, which Close is for the worker: it goes on accepting, only not binding.
func TestWorkerSurvivesTheMaster(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	a.does("s = socket()", "None")
	a.does("s.bind(('127.0.0.1', port))", "None")
	a.Close()
	file.Close()
	a.does("c = create_connection(('127.0.0.1', port))", "None")
	a.does("s.accept()[1][0]", "127.0.0.1")
	a.does("socket().bind(('127.0.0.1', 0))", "Function not implemented")
}

// A worker that ends before it has bound anything ends its link's work.
func TestWorkerThatEndsEarly(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	a.does("1", "1")
	check(t, a.cmd.Process.Kill())
	a.cmd.Wait()
	// Nobody has the filter any more (POLLHUP): nobody will ask.
	eventually(t, "end of the goroutine that answers", func() bool {
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "(*Link).run(")
	})
	if isClosed(a.Ready()) || isClosed(a.Left()) {
		t.Error("ready or left")
	}
}

// nested says that a test runs in a worker that is trapped itself.
const nested = "HANDFAST_TEST_NESTED"

// In a worker that is trapped already there cannot be another filter that asks (EBUSY).
func TestNested(t *testing.T) {
	if os.Getenv(nested) != "" {
		file, _ := listen(t, "127.0.0.1", 0)
		l, err := Open(Config{Listeners: []*os.File{file}})
		check(t, err)
		defer l.Close()
		command := l.Launch([]string{"true"})
		cmd := exec.Command(command[0], command[1:]...)
		cmd.ExtraFiles = l.Files()
		cmd.Run()
		eventually(t, "left", func() bool { return isClosed(l.Left()) })
		if err := l.Err(); !errors.Is(err, unix.EBUSY) {
			t.Errorf("left: %v", err)
		}
		err = Check()
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "another handfast") || !strings.Contains(err.Error(), "--worker-link activation") {
			t.Errorf("check: %v", err)
		}
		return
	}
	l, err := Open(Config{})
	check(t, err)
	defer l.Close()
	command := l.Launch([]string{os.Args[0], "-test.run=^TestNested$"})
	cmd := exec.Command(command[0], command[1:]...)
	cmd.ExtraFiles = l.Files()
	cmd.Env = append(os.Environ(), nested+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// Each thing that may be missing is named, with what it needs.
func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		step  launch.Step
		errno syscall.Errno
		want  string
	}{
		{launch.StepPlatform, unix.ENOSYS, "architecture"},
		{launch.StepNewPrivs, unix.EPERM, "no_new_privs is refused"},
		{launch.StepFilter, unix.EINVAL, "Linux 5.9"},
		{launch.StepFilter, unix.ENOSYS, "Linux 5.9"},
		{launch.StepFilter, unix.EPERM, "container's profile"},
		{launch.StepFilter, unix.EBUSY, "another handfast"},
	} {
		if err := explain(&launch.Error{Step: tt.step, Errno: tt.errno}, oldestKernel); !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.step, err)
		}
	}
}
