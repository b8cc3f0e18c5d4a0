package acceptinject

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/foreigntest"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/supervisor"
)

var _ supervisor.Link = (*Link)(nil)

// injecting is an actor that is handed connections, and the clients' side of them.
type injecting struct {
	*Link
	*foreigntest.Actor
	port   int
	listen net.Listener

	mu   sync.Mutex
	back []fdpass.Handoff // what was given back
}

// inject starts an actor; at is where the balancer listens.
func inject(t *testing.T, at string) *injecting {
	t.Helper()
	fdtest.NeedLinux(t, 5, 19)
	foreigntest.Python(t) // a test that StartActor skips would leave the link without a process
	foreigntest.NoLeaks(t)
	a := &injecting{}
	ln, err := net.Listen("tcp", net.JoinHostPort(at, "0"))
	fdtest.Check(t, err)
	a.listen = ln
	addr := ln.Addr().(*net.TCPAddr).AddrPort()
	a.port = int(addr.Port())
	l, err := Open(Config{Addresses: []netip.AddrPort{addr}, Readmit: a.readmit, Logger: foreigntest.Logger(t),
		Drain: launch.Drain{Signal: unix.SIGTERM}})
	fdtest.Check(t, err)
	t.Cleanup(func() {
		ln.Close()
		a.mu.Lock()
		defer a.mu.Unlock()
		fdpass.CloseHandoffs(a.back)
	})
	a.Link = l
	a.Actor = foreigntest.StartActor(t, l, a.port)
	return a
}

func (a *injecting) readmit(conns []fdpass.Handoff) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.back = append(a.back, conns...)
}

func (a *injecting) givenBack() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.back)
}

// dial connects as a client and returns both ends: the handoff is owned by the caller.
func (a *injecting) dial(from string) (client *net.TCPConn, conn fdpass.Handoff) {
	t := a.T
	t.Helper()
	host := "127.0.0.1"
	if strings.Contains(from, ":") {
		host = "::1"
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(a.port)))
	fdtest.Check(t, err)
	t.Cleanup(func() { c.Close() })
	s, err := a.listen.Accept()
	fdtest.Check(t, err)
	defer s.Close()
	raw, err := s.(*net.TCPConn).SyscallConn()
	fdtest.Check(t, err)
	raw.Control(func(fd uintptr) {
		conn.FD, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		fdtest.Check(t, err)
	})
	conn.Client = s.RemoteAddr().(*net.TCPAddr).AddrPort()
	c.SetDeadline(time.Now().Add(foreigntest.Patience))
	return c.(*net.TCPConn), conn
}

// give has a client's connection delivered.
func (a *injecting) give(from string) *net.TCPConn {
	t := a.T
	t.Helper()
	client, conn := a.dial(from)
	if n, err := a.Deliver([]fdpass.Handoff{conn}); n != 1 || err != nil {
		t.Fatalf("delivered %d: %v", n, err)
	}
	return client
}

// listens has the actor listen in a way.
func (a *injecting) listens(what string) {
	a.T.Helper()
	a.Does(what, "None")
	a.Does("s.listen(1)", "None")
}

// waitingWakeups returns how many wake-ups wait.
func (a *injecting) waitingWakeups() int {
	a.Link.mu.Lock()
	defer a.Link.mu.Unlock()
	return a.Link.woken()
}

func reads(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Errorf("read %q, error %v; want %q", got, err, want)
	}
}

// TestInjectPolled: on a non-blocking socket accept fails (EAGAIN) while nothing is there, a connection wakes a poller, and accept
// tells who it is; all of it once.
func TestInjectPolled(t *testing.T) {
	for _, poller := range []string{
		"ep = select.epoll(); ep.register(s, select.EPOLLIN); wait = lambda ms: [f for f, _ in ep.poll(ms/1000)]",
		"ep = select.epoll(); ep.register(s, select.EPOLLIN | select.EPOLLET); wait = lambda ms: [f for f, _ in ep.poll(ms/1000)]",
		"p = select.poll(); p.register(s, select.POLLIN); wait = lambda ms: [f for f, _ in p.poll(ms)]",
		"wait = lambda ms: [x.fileno() for x in select.select([s], [], [], ms/1000)[0]]",
	} {
		a := inject(t, "127.0.0.1")
		a.listens("s = socket(); s.setblocking(False); s.bind(('127.0.0.1', port))")
		a.Does("s.getblocking(), s.get_inheritable(), listening(s)", "(False, False, 1)")
		a.Does("s.setsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT, 30)", "None")
		a.Does(poller, "None")
		a.Does("s.accept()", "Resource temporarily unavailable")
		if !fdtest.IsClosed(a.Ready()) {
			t.Error("not ready")
		}
		a.Does("wait(0)", "[]")
		for i := range 3 {
			from := fmt.Sprint("127.0.0.", 10+i)
			client := a.give(from)
			a.Does("wait(60000) == [s.fileno()]", "True")
			a.Does("(c, at) = s.accept()", "None")
			a.Does("at[0], c.getpeername() == at, os.get_blocking(c.fileno()), c.get_inheritable()", fmt.Sprintf("('%s', True, True, False)", from))
			a.Does("c.send(b'hello')", "5")
			reads(t, client, "hello")
			a.Does("s.accept()", "Resource temporarily unavailable")
			fdtest.Eventually(t, "end of wake-ups", func() bool { return a.waitingWakeups() == 0 })
			a.Does("wait(0)", "[]")
			a.Does("c.close()", "None")
			if _, err := client.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after close: %v", err)
			}
		}
	}
}

// TestInjectSeveral: each connection wakes a poller that sleeps in between.
func TestInjectSeveral(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.setblocking(False); s.bind(('127.0.0.1', port))")
	a.Does("ep = select.epoll(); ep.register(s, select.EPOLLIN)", "None")
	var clients []*net.TCPConn
	for i := range 10 {
		clients = append(clients, a.give(fmt.Sprint("127.0.0.", 1+i)))
	}
	for i := range 10 {
		a.Does("len(ep.poll(60))", "1")
		a.Does("(c, at) = s.accept(); c.send(at[0].encode()); c.close()", "None")
		reads(t, clients[i], fmt.Sprint("127.0.0.", 1+i))
	}
	a.Does("s.accept()", "Resource temporarily unavailable")
	a.Does("len(ep.poll(0))", "0")
}

// TestInjectBusy: a thread that has accepted and not returned to its poller holds up nobody: another one, which was not woken
// (EPOLLEXCLUSIVE), is soon.
func TestInjectBusy(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.setblocking(False); s.bind(('127.0.0.1', port))")
	a.Does("s.accept()", "Resource temporarily unavailable")
	a.Does("polls = [select.epoll(), select.epoll()]; [e.register(s, select.EPOLLIN | select.EPOLLEXCLUSIVE) for e in polls]", "None")
	a.Does("busy = threading.Event(); done = threading.Event()", "None")
	serve := []string{
		"def serve(e):", " while not done.is_set():", "  e.poll()", "  try: c, at = s.accept()", "  except BlockingIOError: continue",
		"  c.send(b'ok'); c.close()", "  busy.set() if not busy.is_set() else done.set()", "  done.wait()",
	}
	a.Does(fmt.Sprintf("exec(%q, globals())", strings.Join(serve, "\n")), "None")
	a.Does("threads = [threading.Thread(target=serve, args=(e,)) for e in polls]; [t.start() for t in threads]", "None")
	reads(t, a.give("127.0.0.1"), "ok")
	a.Does("busy.wait()", "True")
	reads(t, a.give("127.0.0.1"), "ok")
	a.Does("done.wait() and [t.join() for t in threads]", "[None, None]")
}

// TestInjectBlocking: threads that wait in accept get one each; no wake-up is needed.
func TestInjectBlocking(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.bind(('127.0.0.1', port))")
	a.Does("one = lambda: (lambda c, at: (c.send(at[0].encode()), c.close()))(*s.accept())", "None")
	for range 3 {
		a.Does("threads = [threading.Thread(target=one) for _ in range(4)]; [t.start() for t in threads]", "None")
		a.waits(4)
		if !fdtest.IsClosed(a.Ready()) {
			t.Error("not ready")
		}
		for i := range 4 {
			reads(t, a.give(fmt.Sprint("127.0.0.", 20+i)), fmt.Sprint("127.0.0.", 20+i))
		}
		a.Does("[t.join() for t in threads]", "[None, None, None, None]")
		fdtest.Eventually(t, "end of wake-ups", func() bool { return a.waitingWakeups() == 0 })
	}
}

// waits until so many threads wait in accept.
func (a *injecting) waits(n int) {
	a.T.Helper()
	fdtest.Eventually(a.T, "waiting threads", func() bool {
		a.Link.mu.Lock()
		defer a.Link.mu.Unlock()
		return len(a.waiting) == n
	})
}

// TestInjectArguments: what the program says of the address and of the new descriptor is done as by the kernel.
func TestInjectArguments(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.setblocking(False); s.bind(('127.0.0.1', port))")
	a.Does("buf = ctypes.create_string_buffer(64); size = ctypes.c_int(64)", "None")
	a.Does("error = lambda: os.strerror(ctypes.get_errno())", "None")
	accept4 := func(name, size, flags string) string {
		return fmt.Sprintf("fd = libc.accept4(s.fileno(), %s, %s, %s)", name, size, flags)
	}
	const cloexec, nonblock = "0o2000000", "0o4000"

	a.give("127.0.0.7")
	a.Does(accept4("None", "None", "0"), "None")
	a.Does("fd > 2, os.get_inheritable(fd), os.get_blocking(fd)", "(True, True, True)")
	a.give("127.0.0.7")
	a.Does(accept4("buf", "ctypes.byref(size)", cloexec+"|"+nonblock), "None")
	a.Does("os.get_inheritable(fd), os.get_blocking(fd)", "(False, False)")
	a.Does("size.value, buf.raw[4:8], struct.unpack('=H', buf.raw[:2])", `(16, b'\x7f\x00\x00\x07', (2,))`)

	// Cut, with the size that it would have.
	a.give("127.0.0.7")
	a.Does("buf.raw = b'x' * 64; size.value = 6", "None")
	a.Does(accept4("buf", "ctypes.byref(size)", "0"), "None")
	a.Does("fd > 2, size.value, buf.raw[4:8]", `(True, 16, b'\x7f\x00xx')`)
	a.give("127.0.0.7")
	a.Does("size.value = 0", "None")
	a.Does("fd = libc.accept(s.fileno(), buf, ctypes.byref(size))", "None")
	a.Does("fd > 2, size.value", "(True, 16)")

	// A wrong call fails, and the next call gets the connection.
	client := a.give("127.0.0.7")
	for args, want := range map[[3]string]string{
		{"None", "None", "1"}:                             "Invalid argument",
		{"ctypes.c_void_p(1)", "ctypes.byref(size)", "0"}: "Bad address",
		{"buf", "ctypes.c_void_p(1)", "0"}:                "Bad address",
		{"buf", "None", "0"}:                              "Bad address",
		{"buf", "ctypes.byref(ctypes.c_int(-1))", "0"}:    "Invalid argument",
	} {
		a.Does("size.value = 64", "None")
		a.Does(accept4(args[0], args[1], args[2]), "None")
		a.Does("fd, error()", fmt.Sprintf("(-1, '%s')", want))
	}
	a.Does("import resource; limit = resource.getrlimit(resource.RLIMIT_NOFILE); free = os.dup(0); os.close(free); resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))", "None")
	a.Does("s.accept()", "Too many open files")
	a.Does("resource.setrlimit(resource.RLIMIT_NOFILE, limit)", "None")
	a.Does("s.accept()[0].send(b'ok')", "2")
	reads(t, client, "ok")
	a.Does("libc.accept(999, None, None), error()", "(-1, 'Bad file descriptor')")
	a.Does("libc.accept(0, None, None), error()", "(-1, 'Socket operation on non-socket')")
}

// TestInjectOthersPass: other listeners of the worker accept as ever.
func TestInjectOthersPass(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.Does("o = socket(); o.bind(('127.0.0.1', 0)); o.listen()", "None")
	a.Does("c = create_connection(o.getsockname()); o.accept()[1] == c.getsockname()", "None")
	a.listens("s = socket(); s.setblocking(False); s.bind(('0.0.0.0', port))")
	a.Does("c = create_connection(o.getsockname())", "None")
	a.Does("o.accept()[1] == c.getsockname()", "True")
	a.Does("u = socket(AF_UNIX); u.bind('\\0handfast%d' % port); u.listen(); v = socket(AF_UNIX); v.connect(u.getsockname())", "None")
	a.Does("u.accept()[1]", "")
	a.Does("socket(AF_INET, SOCK_DGRAM).bind(('127.0.0.1', port))", "None")
}

// TestInjectFamilies: clients of one family at a socket of the other.
func TestInjectFamilies(t *testing.T) {
	a := inject(t, "::")
	a.Does("s = socket(AF_INET6); s.setblocking(False); s.bind(('::', port)); s.listen()", "None")
	a.give("127.0.0.9")
	a.Does("(c, at) = s.accept(); at[0], c.getpeername()[0]", "None")
	a.Does("at[0], c.getpeername()[0]", "('::ffff:127.0.0.9', '::ffff:127.0.0.9')")
	a.Does("f = socket(); f.setblocking(False); f.bind(('0.0.0.0', port)); f.listen()", "None")
	a.give("127.0.0.9") // belongs to f from now on
	a.Does("s.accept()", "Resource temporarily unavailable")
	a.Does("select.select([f, s], [], [])[0] == [f]", "True")
	a.Does("(c, at) = f.accept()", "None")
	a.Does("at[0], c.getpeername()[0], c.getsockname()[0]", "('127.0.0.9', '127.0.0.9', '127.0.0.1')")
	a.give("::1")
	a.Does("f.accept()", "Resource temporarily unavailable")
	a.Does("select.select([f, s], [], [])[0] == [s]", "True")
	a.Does("(c, at) = s.accept()", "None")
	a.Does("at[0], c.getpeername()[0]", "('::1', '::1')")

	a = inject(t, "127.0.0.1")
	a.Does("s = socket(AF_INET6); s.setblocking(False); s.bind(('::', port)); s.listen()", "None")
	a.give("127.0.0.9")
	a.Does("s.accept()[1][0]", "::ffff:127.0.0.9")
}

// TestInjectGivesBack: a worker that does not accept has a bound, and what it has not accepted comes back: when it
// drains, and when it dies.
func TestInjectGivesBack(t *testing.T) {
	for _, how := range []string{"drain", "kill", "drain, then kill"} {
		t.Run(how, func(t *testing.T) {
			a := inject(t, "127.0.0.1")
			a.listens("s = socket(); s.setblocking(False); s.bind(('127.0.0.1', port))")
			a.Does("s.accept()", "Resource temporarily unavailable")
			unix.Kill(a.Cmd.Process.Pid, unix.SIGSTOP)
			var conns []fdpass.Handoff
			for range maxQueue + 1 {
				_, conn := a.dial("127.0.0.1")
				conns = append(conns, conn)
			}
			n, err := a.Deliver(conns[:100])
			if n != 100 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
			n, err = a.Deliver(conns[100:])
			if n != maxQueue-100 || err != fdpass.ErrFull {
				t.Fatalf("%d, %v", n, err)
			}
			if n, err := a.Deliver(conns[maxQueue:]); n != 0 || err != fdpass.ErrFull {
				t.Fatalf("%d, %v", n, err)
			}
			if strings.HasPrefix(how, "drain") {
				a.Drain()
				if n := a.givenBack(); n != maxQueue {
					t.Errorf("%d are given back", n)
				}
			}
			if n, err := a.Deliver(conns[maxQueue:]); how != "kill" && (n != 0 || err != fdpass.ErrClosed) {
				t.Fatalf("%d, %v", n, err)
			}
			unix.Close(conns[maxQueue].FD)
			if strings.HasSuffix(how, "kill") {
				a.Cmd.Process.Kill()
				a.Cmd.Wait()
				a.Close()
			}
			if !slices.Equal(a.back, conns[:maxQueue]) {
				t.Errorf("%d are given back, or others", len(a.back))
			}
			for _, conn := range a.back {
				if flags, err := unix.FcntlInt(uintptr(conn.FD), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
					t.Fatalf("given back with flags %o, %v", flags, err)
				}
			}
			unix.Kill(a.Cmd.Process.Pid, unix.SIGCONT)
		})
	}
}

// TestInjectNotStuck: a thread that was woken by a connection that was then given back must not wait for another: that
// would be a server's only thread.
func TestInjectNotStuck(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.bind(('127.0.0.1', port))")
	a.give("127.0.0.1")
	a.Does("len(select.select([s], [], [])[0])", "1")
	a.Drain()
	a.Does("s.accept()", "Software caused connection abort")
	a.Does("select.select([s], [], [], 0)[0]", "[]")

	// The same with what a stranger has left there.
	a = inject(t, "127.0.0.1")
	a.listens("s = socket(); s.bind(('127.0.0.1', port))")
	a.Does("c = create_connection(s.getsockname())", "None")
	a.Does("len(select.select([s], [], [])[0])", "1")
	a.Does("s.accept()", "Software caused connection abort")
}

// TestInjectSeesNoMore: a thread that has accepted all that there was is not woken once more: it would wait in accept.
func TestInjectSeesNoMore(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.bind(('127.0.0.1', port))")
	a.Does("readable = lambda seconds: len(select.select([s], [], [], seconds)[0])", "None")
	for range 200 {
		a.give("127.0.0.5")
		a.Does("readable(60) and s.accept() and readable(0)", "0")
	}
}

// TestInjectOnlyTold: a server that accepts when it is told that there is something is never told in vain: some take that for a
// fault.
func TestInjectOnlyTold(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.setblocking(False); s.bind(('127.0.0.1', port))")
	a.Does("told = lambda seconds: len(select.select([s], [], [], seconds)[0])", "None")
	for range 100 {
		a.give("127.0.0.5")
		a.Does("told(60) and s.accept() and told(0)", "0")
	}
}

// TestInjectSignals: threads that wait handle signals all the same.
func TestInjectSignals(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.bind(('127.0.0.1', port))")
	a.Does("seen = []", "None")
	a.Does("old = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))", "None")
	a.Does("signal.siginterrupt(signal.SIGUSR1, False)", "None") // SA_RESTART
	// The kernel has it call accept again.
	a.Begin("(libc.accept(s.fileno(), None, None), ctypes.get_errno())[0] > 2")
	a.waits(1)
	for range 3 {
		unix.Kill(a.Cmd.Process.Pid, unix.SIGUSR1)
		fdtest.Eventually(t, "signal handled", func() bool { _, shared, _ := pendingSignals(a.Cmd.Process.Pid); return !shared })
	}
	a.waits(1)
	a.give("127.0.0.5")
	a.Ends("accept", "True")
	a.Does("len(seen) > 0", "True")
	// Interrupted, if the program wants that.
	a.Does("signal.siginterrupt(signal.SIGUSR1, True)", "None")
	a.Begin("libc.accept(s.fileno(), None, None), os.strerror(ctypes.get_errno())")
	a.waits(1)
	unix.Kill(a.Cmd.Process.Pid, unix.SIGUSR1)
	a.Ends("accept", "(-1, 'Interrupted system call')")
	// One that kills does.
	a.Begin("s.accept()")
	a.waits(1)
	unix.Kill(a.Cmd.Process.Pid, unix.SIGTERM)
	if err := a.Cmd.Wait(); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("end: %v", err)
	}
}

// TestInjectDeadWaiter: a thread that was killed while it waited costs no connection.
func TestInjectDeadWaiter(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.bind(('127.0.0.1', port))")
	a.Does("pid = os.fork() or (s.accept(), os._exit(0))", "None")
	a.waits(1)
	a.Does("os.kill(pid, 9); os.waitpid(pid, 0)[0] == pid", "None")
	client := a.give("127.0.0.1")
	a.Does("s.accept()[0].send(b'ok')", "2")
	reads(t, client, "ok")
}

// TestInjectClosed: a server that closes its sockets gets no more.
func TestInjectClosed(t *testing.T) {
	for what, closing := range map[string]string{"close": "s.close()", "shutdown": "s.shutdown(SHUT_RDWR)"} {
		t.Run(what, func(t *testing.T) {
			a := inject(t, "127.0.0.1")
			a.listens("s = socket(); s.setblocking(False); s.bind(('127.0.0.1', port))")
			a.Does("s.accept()", "Resource temporarily unavailable")
			a.Does(closing, "None")
			if what == "close" {
				a.give("127.0.0.1")
			}
			fdtest.Eventually(t, "left", func() bool { return fdtest.IsClosed(a.Left()) })
			if err := a.Err(); !errors.Is(err, errShut) {
				t.Error(err)
			}
			if n := a.givenBack(); what == "close" && n != 1 {
				t.Errorf("%d are given back", n)
			}
		})
	}
	// One of two: the other gets what was for both.
	a := inject(t, "127.0.0.1")
	a.listens("t = socket(); t.setblocking(False); t.bind(('127.0.0.1', port)); s = socket(); s.setblocking(False); s.bind(('127.0.0.1', port))")
	a.Does("s.accept()", "Resource temporarily unavailable")
	a.Does("t.close()", "None")
	for range 4 {
		client := a.give("127.0.0.1")
		a.Does("len(select.select([s], [], [])[0])", "1")
		a.Does("s.accept()[0].send(b'ok')", "2")
		reads(t, client, "ok")
	}
	// A thread that waits in accept is told.
	a = inject(t, "127.0.0.1")
	a.listens("s = socket(); s.bind(('127.0.0.1', port))")
	a.Does("t = threading.Timer(0.1, lambda: s.shutdown(SHUT_RDWR)); t.start()", "None")
	a.Does("s.accept()", "Invalid argument")
}

// TestInjectMasterEnds: when the master ends accept fails.
func TestInjectMasterEnds(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.listens("s = socket(); s.bind(('127.0.0.1', port))")
	a.Begin("s.accept()")
	a.waits(1)
	a.Close()
	a.Ends("accept", "Function not implemented")
	a.Does("s.accept()", "Function not implemented")
}

// TestInjectRegisteredBeforeBind: a decoy is known to the epoll instances that knew the socket.
func TestInjectRegisteredBeforeBind(t *testing.T) {
	a := inject(t, "127.0.0.1")
	a.Does("s = socket(); e = select.epoll(); e.register(s, 0); s.setblocking(False)", "None")
	a.listens("s.bind(('127.0.0.1', port))")
	a.Does("e.modify(s, select.EPOLLIN)", "None")
	fdtest.Eventually(t, "ready", func() bool { return fdtest.IsClosed(a.Ready()) })
	a.give("127.0.0.5")
	a.Does("e.poll(30) == [(s.fileno(), select.EPOLLIN)]", "True")
	a.Does("s.accept()[1][0]", "127.0.0.5")
}

// TestInjectNarrower: a server for one address does not get the clients of all.
func TestInjectNarrower(t *testing.T) {
	a := inject(t, "")
	const bind = "(s := socket()).bind(('127.0.0.1', port))"
	a.Begin(bind)
	fdtest.Eventually(t, "left", func() bool { return fdtest.IsClosed(a.Left()) })
	if err := a.Err().Error(); !strings.Contains(err, fmt.Sprintf("--listen 127.0.0.1:%d", a.port)) {
		t.Error(err)
	}
	a.Drain()
	a.Ends(bind, "Cannot assign requested address")
	client, conn := a.dial("127.0.0.1")
	defer client.Close()
	if n, err := a.Deliver([]fdpass.Handoff{conn}); n != 0 || !errors.Is(err, fdpass.ErrClosed) {
		t.Errorf("delivered %d: %v", n, err)
	}
	unix.Close(conn.FD)
}

func TestParseStatus(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("/proc/self", "status"))
	fdtest.Check(t, err)
	if _, _, threads := parseStatus(string(text)); threads < 2 { // Go's runtime may have sent itself a signal
		t.Errorf("%d threads", threads)
	}
	for status, want := range map[string][2]bool{
		"Threads:\t1\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000000\n": {false, true},
		"Threads:\t1\nSigPnd:\t0000000000000200\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000004000\n": {true, false},
		"Threads:\t1\nSigPnd:\tx\n": {false, false},
	} {
		if own, shared, _ := parseStatus(status); own != want[0] || shared != want[1] {
			t.Errorf("%q: %v, %v", status, own, shared)
		}
	}
}
