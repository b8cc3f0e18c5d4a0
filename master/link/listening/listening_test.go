package listening

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
)

// patience bounds what should happen soon.
const patience = 30 * time.Second

// waiter is a program that has the listener as descriptor 3 and waits on it in some way, once
// it is told to.
const waiter = `
import os, select, socket, sys, threading, subprocess, time
s = socket.socket(fileno=3)
def wait(): exec(sys.argv[1], globals())
sys.stdout.write('here\n'); sys.stdout.flush()
sys.stdin.readline()
wait()
time.sleep(1000)
`

// start runs a waiter, which has said that it is there. Go has it wait.
func start(t *testing.T, how string, file *os.File) (pid int, goOn func()) {
	t.Helper()
	cmd := exec.Command("python3", "-c", waiter, how)
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	fdtest.Check(t, err)
	out, err := cmd.StdoutPipe()
	fdtest.Check(t, err)
	fdtest.Check(t, cmd.Start())
	t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // and its children
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "here\n" {
		t.Fatalf("the waiter says %q, error %v", line, err)
	}
	return cmd.Process.Pid, func() { fmt.Fprintln(in) }
}

// listen opens a listener that is not in Go's poller.
func listen(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	file := os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { file.Close() })
	fdtest.Check(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	fdtest.Check(t, unix.Listen(fd, 10))
	return file
}

func inode(t *testing.T, file *os.File) Listener {
	t.Helper()
	n, err := sock.Inode(file)
	fdtest.Check(t, err)
	raw, err := file.SyscallConn()
	fdtest.Check(t, err)
	s := Listener{Inode: n}
	raw.Control(func(fd uintptr) {
		name, _ := unix.Getsockname(int(fd))
		at := name.(*unix.SockaddrInet4)
		s.Addr = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	})
	return s
}

// waits waits until somebody below a process waits on a socket.
func waits(pid int, sockets ...Listener) bool {
	stop := make(chan struct{})
	timer := time.AfterFunc(patience, func() { close(stop) })
	defer timer.Stop()
	return Wait(stop, func() []int { return []int{pid} }, func() []Listener { return sockets }, nil)
}

// Every way in which programs wait for connections is seen, and not before they do.
func TestWaysToWait(t *testing.T) {
	for name, how := range map[string]string{
		"accept":         "s.setblocking(True); s.accept()",
		"thread":         "threading.Thread(target=s.accept).start()",
		"epoll":          "e = select.epoll(); e.register(3, select.EPOLLIN); e.poll()",
		"epoll shared":   "e = select.epoll(); e.register(3, select.EPOLLIN | select.EPOLLEXCLUSIVE); e.poll()",
		"epoll of many":  "e = select.epoll(); p = os.pipe(); e.register(p[0]); e.register(3); e.poll()",
		"epoll by child": "e = select.epoll(); e.register(3); os.fork() or e.poll()",
		"poll":           "p = select.poll(); p.register(os.pipe()[0]); p.register(3, select.POLLIN); p.poll()",
		"select":         "select.select([os.pipe()[0], 3], [], [])",
		"select high":    "os.dup2(3, 700); os.close(3); select.select([700], [], [])",
		"child":          "os.fork() or s.accept()",
		"grandchild":     "subprocess.Popen([sys.executable, '-c', 'import select; select.select([3], [], [])'], pass_fds=[3])",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := listen(t)
			pid, goOn := start(t, how, file)
			if seen, err := Listening([]int{pid}, []Listener{inode(t, file)}); seen || err != nil {
				t.Errorf("it is seen to wait before it does: error %v", err)
			}
			goOn()
			if !waits(pid, inode(t, file)) {
				t.Errorf("not seen within %v", patience)
			}
			if seen, _ := Listening([]int{pid}, []Listener{inode(t, listen(t))}); seen {
				t.Error("another listener is seen")
			}
		})
	}
}

// TestNoWaiting: a program does things with a listener that are no waiting for connections. The last thing that
// each does is to sleep, so that we know when it has done the rest.
func TestNoWaiting(t *testing.T) {
	for name, how := range map[string]string{
		"has it":              "",
		"epoll without it":    "e = select.epoll(); e.register(os.pipe()[0])",
		"epoll not for input": "e = select.epoll(); e.register(3, 0)",
		"epoll once":          "e = select.epoll(); e.register(3, select.EPOLLIN | select.EPOLLONESHOT); c = socket.create_connection(s.getsockname()); e.poll()",
		"epoll, and closed":   "e = select.epoll(); e.register(3); s.close()",
		"poll not for input":  "p = select.poll(); p.register(3, 0); threading.Thread(target=p.poll).start()",
		"select for output":   "threading.Thread(target=select.select, args=([os.pipe()[0]], [], [3])).start()",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := listen(t)
			pid, goOn := start(t, how, file)
			goOn()
			// It sleeps in the main thread.
			for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
				if strings.Contains(string(text), "nanosleep") || err != nil {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("it does not sleep but %s", text)
				}
			}
			for range 10 {
				if seen, err := Listening([]int{pid}, []Listener{inode(t, file)}); seen || err != nil {
					t.Fatalf("seen %v, error %v", seen, err)
				}
			}
		})
	}
}

// Of two workers that share a listener only the one that waits is ready; and only if it waits
// on all its listeners.
func TestWhoWaits(t *testing.T) {
	a, b := listen(t), listen(t)
	old, goOn := start(t, "s.accept()", a)
	goOn()
	if !waits(old, inode(t, a)) {
		t.Fatal("the old worker is not seen")
	}
	next, goOn := start(t, "s.accept()", a)
	if seen, _ := Listening([]int{next}, []Listener{inode(t, a)}); seen {
		t.Error("the new worker is taken for the old one")
	}
	goOn()
	if !waits(next, inode(t, a)) {
		t.Error("the new worker is not seen")
	}
	if seen, _ := Listening([]int{next}, []Listener{inode(t, a), inode(t, b)}); seen {
		t.Error("it is said to wait on a listener that it has not")
	}
	if seen, _ := Listening([]int{next, old}, nil); seen {
		t.Error("something is seen where there is nothing to wait for")
	}
}

// Processes that end while they are looked at are no error.
func TestNobodyThere(t *testing.T) {
	cmd := exec.Command("true")
	fdtest.Check(t, cmd.Run())
	if seen, err := Listening([]int{cmd.Process.Pid}, []Listener{{Inode: 1}}); seen || err != nil {
		t.Errorf("seen %v, error %v", seen, err)
	}
}

// A server that never waits, since there is always somebody to be served: it has accepted from the
// listener. Row A1.
func TestBusyServer(t *testing.T) {
	for name, how := range map[string]string{
		"accepts": `
s.setblocking(True)
while True:
    c, _ = s.accept()
    for end in [time.monotonic() + 0.02]:
        while time.monotonic() < end: pass
    c.close()
`,
		"hands over to a child": `
s.setblocking(True)
r, w = socket.socketpair()
if os.fork():
    r.close()
    while True:
        c, _ = s.accept()
        socket.send_fds(w, [b'x'], [c.fileno()])
        c.close()
s.close(); w.close()
while True:
    _, [fd], _, _ = socket.recv_fds(r, 1, 1)
    for end in [time.monotonic() + 0.02]:
        while time.monotonic() < end: pass
    os.close(fd)
`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := listen(t)
			socket := inode(t, file)
			pid, goOn := start(t, how, file)
			over := make(chan struct{})
			var clients sync.WaitGroup
			for range 8 {
				clients.Go(func() {
					for {
						conn, err := net.Dial("tcp", socket.Addr.String())
						if err != nil {
							t.Error(err)
							return
						}
						conn.SetDeadline(time.Now().Add(patience))
						conn.Read(make([]byte, 1))
						conn.Close()
						select {
						case <-over:
							return
						default:
						}
					}
				})
			}
			defer clients.Wait()
			defer close(over)
			for range 3 {
				if seen, err := Listening([]int{pid}, []Listener{socket}); seen || err != nil {
					t.Errorf("it is seen to accept before it does: error %v", err)
				}
			}
			goOn()
			began := time.Now()
			if !waits(pid, socket) || time.Since(began) > patience/3 {
				t.Errorf("not seen within %v", time.Since(began))
			}
			other := inode(t, listen(t))
			if seen, _ := Listening([]int{pid}, []Listener{other}); seen {
				t.Error("another listener is seen")
			}
		})
	}
}
