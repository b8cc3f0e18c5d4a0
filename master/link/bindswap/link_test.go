package bindswap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/foreigntest"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/supervisor"
)

var _ supervisor.Link = (*Link)(nil)

// acting is one that is given listeners.
type acting struct {
	*Link
	*foreigntest.Actor
}

// act starts an actor under a link.
func act(t *testing.T, cfg Config, port int) *acting {
	t.Helper()
	foreigntest.Python(t) // a test that is skipped later leaks the link
	foreigntest.NoLeaks(t)
	if cfg.Logger == nil {
		cfg.Logger = foreigntest.Logger(t)
	}
	l, err := Open(cfg)
	fdtest.Check(t, err)
	return &acting{l, foreigntest.StartActor(t, l, port)}
}

// listen opens a listener on "any", 0.0.0.0 and :: in one; or on an address.
func listen(t *testing.T, at string, port int) (*os.File, int) {
	t.Helper()
	foreigntest.NoLeaks(t)
	family := unix.AF_INET6
	var name unix.Sockaddr = &unix.SockaddrInet6{Port: port}
	if ip := net.ParseIP(at).To4(); ip != nil {
		family, name = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte(ip)}
	}
	fd := foreigntest.Socket(t, family)
	file := os.NewFile(uintptr(fd), at)
	t.Cleanup(func() { file.Close() })
	fdtest.Check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	if family == unix.AF_INET6 {
		fdtest.Check(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, map[bool]int{false: 1, true: 0}[at == "any"]))
	}
	fdtest.Check(t, unix.Bind(fd, name))
	fdtest.Check(t, unix.Listen(fd, 1000))
	bound, err := unix.Getsockname(fd)
	fdtest.Check(t, err)
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
	n, err := sock.Inode(file)
	fdtest.Check(t, err)
	return n
}

// has asks for the socket behind a descriptor of the actor's.
func (a *acting) has(variable string, file *os.File) {
	a.T.Helper()
	a.Does(fmt.Sprintf("os.readlink('/proc/self/fd/%%d' %% %s.fileno())", variable), fmt.Sprintf("socket:[%d]", inode(a.T, file)))
}

// TestSwap: the server's socket becomes the slot's listener, with its own descriptor's flags. That is
// not yet ready: it must wait for connections.
func TestSwap(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	a.Does("s = socket()", "None")
	a.Does("s.bind(('127.0.0.1', port))", "None")
	a.has("s", file)
	a.Does("s.getsockname() == ('127.0.0.1', port)", "True")
	a.Does("s.get_inheritable(), s.getblocking(), os.get_blocking(s.fileno())", "(False, True, True)")
	a.Does("c = socket()", "None")
	a.Does("c.set_inheritable(True), c.setblocking(False)", "(None, None)")
	a.Does("c.bind(('0.0.0.0', port))", "None") // as another process of the server would
	a.has("c", file)
	a.Does("c.get_inheritable(), os.get_blocking(c.fileno())", "(True, False)")
	a.Does("d = socket()", "None")
	a.Does("d.bind(('', port))", "None") // a blocking one again, which would stop c's loop
	a.Does("os.get_blocking(d.fileno())", "False")
	if fdtest.IsClosed(a.Ready()) {
		t.Error("it is ready without waiting for connections")
	}
	a.Does("threading.Thread(target=select.select, args=([s], [], [])).start()", "None")
	fdtest.Eventually(t, "ready", func() bool { return fdtest.IsClosed(a.Ready()) })
}

// TestOtherCallsPass: what is not the balancer's, the kernel decides as ever.
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
		a.Does(what, want)
	}
	if a.isTaken() {
		t.Error("it has the slot's listener")
	}
}

func (l *Link) isTaken() bool { return l.awaited() != nil }

// TestSlotSurvivesItsServer: what the server does to its socket must not be done to the slot's: a small backlog, and
// the end of it.
func TestSlotSurvivesItsServer(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	a.Does("s = socket()", "None")
	a.Does("s.bind(('127.0.0.1', port))", "None")
	a.Does("s.listen(1)", "None")
	if n := backlog(t, file); n != 1000 {
		t.Errorf("backlog of %d", n)
	}
	for _, how := range []string{"SHUT_RD", "SHUT_WR", "SHUT_RDWR"} {
		a.Does("s.shutdown("+how+")", "None")
		a.Does("listening(s)", "1")
	}
	c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
	fdtest.Check(t, err)
	defer c.Close()
	a.Does("s.accept()[1][0]", "127.0.0.1")
	// Its own connections it shuts down as it likes.
	a.Does("c = create_connection(('127.0.0.1', port))", "None")
	a.Does("c.shutdown(SHUT_RDWR) or s.accept()[0].recv(1)", "b''")
}

// backlog is how many connections a listener may have waiting (tcpi_sacked).
func backlog(t *testing.T, file *os.File) int {
	t.Helper()
	raw, err := file.SyscallConn()
	fdtest.Check(t, err)
	var info *unix.TCPInfo
	raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	fdtest.Check(t, err)
	return int(info.Sacked)
}

// TestFamilies: where clients of both families come in at one listener, a server of IPv4 gets one of IPv4
// beside it, and sees their addresses as it expects them.
func TestFamilies(t *testing.T) {
	both, port := listen(t, "any", 0)
	t.Run("IPv6", func(t *testing.T) {
		a := act(t, Config{Listeners: []*os.File{both}, IPv4: func(*os.File) (*os.File, error) {
			t.Error("a listener of IPv4 was asked for")
			return nil, unix.EINVAL
		}}, port)
		a.Does("s = socket(AF_INET6)", "None")
		a.Does("s.bind(('::', port))", "None")
		a.has("s", both)
		a.Does("c = create_connection(('127.0.0.1', port))", "None")
		a.Does("s.accept()[1][0]", "::ffff:127.0.0.1")
		a.Does("m = socket(AF_INET6)", "None")
		a.Does("m.bind(('::ffff:0.0.0.0', port))", "None") // as Java does for IPv4
		a.has("m", both)
	})
	t.Run("IPv4", func(t *testing.T) {
		var only atomic.Pointer[os.File]
		a := act(t, Config{Listeners: []*os.File{both}, IPv4: func(*os.File) (*os.File, error) {
			file, _ := listen(t, "0.0.0.0", port)
			only.Store(file)
			return file, nil
		}}, port)
		a.Does("s = socket()", "None")
		a.Does("s.bind(('0.0.0.0', port))", "None")
		a.has("s", only.Load())
		a.Does("c = create_connection(('127.0.0.1', port))", "None")
		a.Does("s.accept()[1][0]", "127.0.0.1")
		a.Does("again = socket()", "None")
		a.Does("again.bind(('0.0.0.0', port))", "None")
		a.has("again", only.Load())
		a.Does("s.listen(1)", "None")
		if n := backlog(t, only.Load()); n != 1000 {
			t.Errorf("backlog of %d", n)
		}
		a.Does("threading.Thread(target=s.accept).start()", "None")
		fdtest.Eventually(t, "ready", func() bool { return fdtest.IsClosed(a.Ready()) })
	})
}

// TestNarrower: a server for localhost, or for one address, does not get the clients of all. It fails when
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
			a.Begin(bind)
			fdtest.Eventually(t, "left", func() bool { return fdtest.IsClosed(a.Left()) })
			if err := a.Err().Error(); !strings.Contains(err, "only, handfast on [::]:") || !strings.Contains(err, "--listen "+fmt.Sprintf(server, port)) {
				t.Error(err)
			}
			a.Drain()
			a.Ends(bind, "Cannot assign requested address")
			a.Does("listening(socket())", "0")
			a.Begin(bind) // a second attempt is not left waiting
			a.Ends(bind, "Cannot assign requested address")
			if a.isTaken() {
				t.Error("it has the slot's listener")
			}
		})
	}
}

// TestSeveralListeners: in a slot with several listeners each socket gets the one that it asks for, and the worker is
// ready when it waits on all.
func TestSeveralListeners(t *testing.T) {
	one, port := listen(t, "127.0.0.1", 0)
	two, _ := listen(t, "127.0.0.2", port)
	six, _ := listen(t, "::", port)
	a := act(t, Config{Listeners: []*os.File{six, one, two}}, port)
	a.Does("s = [socket(), socket(), socket(AF_INET6)]", "None")
	a.Does("s[0].bind(('127.0.0.2', port)), s[1].bind(('127.0.0.1', port))", "(None, None)")
	a.has("s[0]", two)
	a.has("s[1]", one)
	a.Does("e = select.epoll()", "None")
	a.Does("e.register(s[0]), e.register(s[1])", "(None, None)")
	for range 20 {
		if seen, _ := listening.Listening(a.Roots(), a.awaited()); seen {
			t.Fatal("it is ready with a listener that nobody waits on")
		}
	}
	a.Does("s[2].bind(('::', port))", "None")
	a.has("s[2]", six)
	a.Does("e.register(s[2])", "None")
	fdtest.Eventually(t, "ready", func() bool { return fdtest.IsClosed(a.Ready()) })
}

// TestRegisteredBeforeBind: a socket that epoll instances know before it is bound, as with Netty's epoll transport, is
// known to them afterwards, too, also where their numbers are taken in this process, and if a thread
// that is not the first one binds.
func TestRegisteredBeforeBind(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	var warnings strings.Builder // read when nothing is written any more
	a := act(t, Config{Listeners: []*os.File{file}, Logger: hclog.New(&hclog.LoggerOptions{Output: &warnings})}, port)
	for number := 20; number < 50; number++ { // some of them are taken here, one will be the epoll instance's
		a.Does(fmt.Sprintf("n = %d; e = [select.epoll(), select.epoll()]; f = socket(); os.dup2(f.fileno(), n); f.close(); s = socket(fileno=n)", number), "None")
		a.Does("e[0].register(n, 0), e[1].register(n, select.EPOLLIN | select.EPOLLET)", "(None, None)")
		a.Does("b = threading.Thread(target=s.bind, args=(('127.0.0.1', port),)); b.start(); b.join()", "None")
		a.has("s", file)
		a.Does("s.listen(), e[0].modify(n, select.EPOLLIN)", "(None, None)")
		c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
		fdtest.Check(t, err)
		a.Does("[x.poll(30) == [(n, select.EPOLLIN)] for x in e]", "[True, True]")
		a.Does("s.accept()[1][0]", "127.0.0.1")
		c.Close()
		a.Does("e[1].unregister(n), e[0].unregister(n), e[0].close(), e[1].close(), s.close()", "(None, None, None, None, None)")
	}
	a.Close()
	if strings.Contains(warnings.String(), "lost") {
		t.Error(warnings.String())
	}
}

// TestDescendants: children of the worker, whatever became of their parents, are asked like it.
func TestDescendants(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	// A daemon: forked twice, its parent gone.
	a.Does("os.fork() == 0 and (os.setsid(), os.fork() and os._exit(0), (s := socket()).bind(('127.0.0.1', port)), s.listen(), s.accept(), os._exit(0)); os.wait()", "None")
	fdtest.Eventually(t, "ready", func() bool { return fdtest.IsClosed(a.Ready()) })
	c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
	fdtest.Check(t, err)
	c.Close()
}

// TestWorkerSurvivesTheMaster: when the master ends, which to the worker is as Close, it goes on accepting, but cannot bind.
func TestWorkerSurvivesTheMaster(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	a.Does("s = socket()", "None")
	a.Does("s.bind(('127.0.0.1', port))", "None")
	a.Close()
	file.Close()
	a.Does("c = create_connection(('127.0.0.1', port))", "None")
	a.Does("s.accept()[1][0]", "127.0.0.1")
	a.Does("socket().bind(('127.0.0.1', 0))", "Function not implemented")
}

// TestWorkerThatEndsEarly: a worker that ends before it has bound anything ends its link's work.
func TestWorkerThatEndsEarly(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	a := act(t, Config{Listeners: []*os.File{file}}, port)
	a.Does("1", "1")
	fdtest.Check(t, a.Cmd.Process.Kill())
	a.Cmd.Wait()
	// Nobody has the filter any more (POLLHUP): nobody will ask.
	fdtest.Eventually(t, "end of the goroutine that answers", func() bool {
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "(*Link).run(")
	})
	if fdtest.IsClosed(a.Ready()) || fdtest.IsClosed(a.Left()) {
		t.Error("ready or left")
	}
}

// nested says that a test runs in a worker that has a filter itself.
const nested = "HANDFAST_TEST_NESTED"

// TestNested: in a worker that has a filter already there cannot be another filter that asks (EBUSY).
func TestNested(t *testing.T) {
	if os.Getenv(nested) != "" {
		file, _ := listen(t, "127.0.0.1", 0)
		l, err := Open(Config{Listeners: []*os.File{file}})
		fdtest.Check(t, err)
		defer l.Close()
		command := l.Launch([]string{"true"})
		cmd := exec.Command(command[0], command[1:]...)
		cmd.ExtraFiles = l.Files()
		cmd.Run()
		fdtest.Eventually(t, "left", func() bool { return fdtest.IsClosed(l.Left()) })
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
	fdtest.Check(t, err)
	defer l.Close()
	command := l.Launch([]string{os.Args[0], "-test.run=^TestNested$"})
	cmd := exec.Command(command[0], command[1:]...)
	cmd.ExtraFiles = l.Files()
	cmd.Env = append(os.Environ(), nested+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
