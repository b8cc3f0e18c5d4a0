package foreigntest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/supervisor"
)

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

// Actor is such a worker.
type Actor struct {
	T   *testing.T
	Cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

// Link is a link that tells when it is closed.
type Link interface {
	supervisor.Link
	Closed() <-chan struct{}
}

// tests are those that look for leaks already.
var tests sync.Map

// NoLeaks is fdtest.NoLeaks for a test that may start several actors. Call it before each is started.
func NoLeaks(t *testing.T) {
	t.Helper()
	if _, already := tests.LoadOrStore(t, true); !already {
		fdtest.NoLeaks(t)
	}
}

// StartActor starts an actor under a link, which it closes at the end of the test.
func StartActor(t *testing.T, l Link, port int) *Actor {
	t.Helper()
	command := l.Launch([]string{Python(t), "-c", actorText, fmt.Sprint(port)})
	cmd := exec.Command(command[0], command[1:]...)
	cmd.ExtraFiles = l.Files()
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	fdtest.Check(t, err)
	out, err := cmd.StdoutPipe()
	fdtest.Check(t, err)
	fdtest.Check(t, cmd.Start())
	t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
		if !fdtest.IsClosed(l.Closed()) {
			l.Close()
		}
	})
	return &Actor{t, cmd, in, bufio.NewReader(out)}
}

// Does has the actor do something and compares its answer.
func (a *Actor) Does(what, want string) {
	a.T.Helper()
	a.Begin(what)
	a.Ends(what, want)
}

// Begin has the actor do something.
func (a *Actor) Begin(what string) {
	a.T.Helper()
	_, err := fmt.Fprintln(a.in, what)
	fdtest.Check(a.T, err)
}

// Ends compares its answer.
func (a *Actor) Ends(what, want string) {
	a.T.Helper()
	got, err := a.out.ReadString('\n')
	fdtest.Check(a.T, err)
	if got = strings.TrimSpace(got); got != want {
		a.T.Errorf("%s: %s, want %s", what, got, want)
	}
}
