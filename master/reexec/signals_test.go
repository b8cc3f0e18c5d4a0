package reexec

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// relayRole has the test binary be a program that replaces itself over and over.
const relayRole = "HANDFAST_TEST_RELAY"

func TestMain(m *testing.M) {
	if os.Getenv(relayRole) != "" {
		relay()
	}
	os.Exit(m.Run())
}

// relay writes which signals it receives, and becomes itself again after a moment.
func relay() {
	bundle, err := Inherited()
	if err != nil {
		panic(err)
	}
	signals, err := Notify(unix.SIGUSR1, unix.SIGUSR2, unix.SIGTTIN, unix.SIGTTOU, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	if err != nil {
		panic(err)
	}
	if bundle == nil {
		fmt.Println("begun")
	}
	go func() {
		for {
			r := signals.Next(context.Background())
			Lock.RLock()
			fmt.Println(int(r.Signal))
			r.Done()
			Lock.RUnlock()
		}
	}()
	time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
	Lock.Lock()
	self, err := os.Executable()
	if err == nil {
		err = NewBundle("").Exec(Program{self, os.Args, os.Environ()})
	}
	panic(err)
}

// relayed is such a program.
type relayed struct {
	cmd   *exec.Cmd
	lines chan string
}

func startRelay(t *testing.T) *relayed {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	r := &relayed{cmd: exec.Command(self), lines: make(chan string, 1)}
	r.cmd.Env = append(os.Environ(), relayRole+"=1")
	out, err := r.cmd.StdoutPipe()
	check(t, err)
	check(t, r.cmd.Start())
	go func() {
		defer close(r.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			r.lines <- lines.Text()
		}
		io.Copy(io.Discard, out)
	}()
	select {
	case line := <-r.lines:
		if line != "begun" {
			t.Fatalf("it says %q", line)
		}
	case <-time.After(patience):
		r.end()
		t.Fatal("it says nothing")
	}
	return r
}

func (r *relayed) end() {
	r.cmd.Process.Kill()
	for range r.lines {
	}
	r.cmd.Wait()
}

// The fates of a signal.
const (
	heard = "heard"
	lost  = "lost"
	died  = "died"
)

// patience is how long something may take that happens unless it is broken.
const patience = 10 * time.Second

// send sends a signal at any moment, and tells what became of it.
func (r *relayed) send(t *testing.T, sig syscall.Signal, patience time.Duration) string {
	time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
	r.cmd.Process.Signal(sig)
	select {
	case line, ok := <-r.lines:
		if !ok {
			return died
		}
		if line != strconv.Itoa(int(sig)) {
			t.Errorf("%v was sent, %s is heard", sig, line)
		}
		return heard
	case <-time.After(patience):
		return lost
	}
}

// TestSignalsOverExec: while a program replaces itself without a pause no signal kills or stops it, and none is lost,
// with exceptions. One is lost if the thread that has just taken it from the kernel is ended by execve before it has
// recorded it: some microseconds of each time. The Go runtime of the next program lets SIGINT and SIGTERM kill it at its
// start, and SIGHUP, which asks for what is being done, is ignored so long.
func TestSignalsOverExec(t *testing.T) {
	rounds := 25 // a longer trial is make soak's
	if n, err := strconv.Atoi(os.Getenv("HANDFAST_TEST_SIGNALS")); err == nil {
		rounds = n
	}
	most := max(1, rounds/50) // that may be lost
	for _, sig := range []syscall.Signal{unix.SIGUSR1, unix.SIGUSR2, unix.SIGTTIN, unix.SIGTTOU} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			r := startRelay(t)
			defer r.end()
			became := map[string]int{}
			for range rounds {
				what := r.send(t, sig, patience)
				if became[what]++; what == died || became[lost] > most {
					break
				}
			}
			t.Logf("without a pause between upgrades: %v", became)
			if became[died] > 0 || became[lost] > most || stopped(r.cmd.Process.Pid) {
				t.Errorf("%v", became)
			}
		})
	}
	for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			r, became := startRelay(t), map[string]int{}
			defer func() { r.end() }()
			soon := 2 * time.Second // a slow machine takes a while to start the next program
			if sig == unix.SIGHUP {
				soon = 200 * time.Millisecond // it is ignored often, and waiting does not bring it
			}
			for n, end := 0, time.Now().Add(patience); n < rounds/5 || became[heard] == 0 && time.Now().Before(end); n++ {
				if sig != unix.SIGHUP && became[lost] > most {
					break
				}
				what := r.send(t, sig, soon)
				if became[what]++; what == died {
					r.end()
					r = startRelay(t)
				}
			}
			t.Logf("without a pause between upgrades: %v", became)
			if sig == unix.SIGHUP && became[died] > 0 || sig != unix.SIGHUP && became[lost] > most || became[heard] == 0 {
				t.Errorf("%v", became)
			}
		})
	}
}

// stopped tells whether a process is, by a signal.
func stopped(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(state, "T")
}

// TestHandOver: what was received and not acted on, and what comes in the last moment, goes to the next program, or to
// this one if there is none.
func TestHandOver(t *testing.T) {
	// handOver belongs to this thread, and waits for others.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer time.AfterFunc(3*patience, func() { panic("what is not acted on is waited for without an end") }).Stop()
	s, err := Notify(unix.SIGUSR1, unix.SIGUSR2, unix.SIGTTIN)
	check(t, err)
	defer s.Stop()
	next := func(want syscall.Signal) *Received {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		r := s.Next(ctx)
		if r == nil || r.Signal != want {
			t.Fatalf("%+v, want %v", r, want)
		}
		return r
	}
	kill := func(sig syscall.Signal) { check(t, unix.Kill(unix.Getpid(), sig)) }
	kill(unix.SIGUSR1)
	acted := next(unix.SIGUSR1)
	kill(unix.SIGUSR2) // before a system call of this thread, which does not mean that it is this thread that catches it
	fdtest.Eventually(t, "the signal is heard", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.waiting) > 0
	})
	pipe, passed, undo, err := s.handOver()
	check(t, err)
	l, err := parseLeft(strings.TrimPrefix(passed, ":"))
	check(t, err)
	if len(l.signals) != 2 || l.signals[0] != unix.SIGUSR1 || l.signals[1] != unix.SIGUSR2 || l.pipe != pipe {
		t.Errorf("%q is passed on: %+v", passed, l)
	}
	kill(unix.SIGTTIN)
	undo()
	acted.Done()
	next(unix.SIGUSR2).Done()
	next(unix.SIGTTIN).Done()
	if rest := s.rest(); len(rest) > 0 {
		t.Errorf("%v is left", rest)
	}
	kill(unix.SIGUSR1)
	next(unix.SIGUSR1).Done()
}

// TestLeftNonsense: what no program leaves is an error.
func TestLeftNonsense(t *testing.T) {
	for _, text := range []string{"", "x", "1:10", "-1:", "9:10,x", "9:65", "9:-1", "9:10,,"} {
		if l, err := parseLeft(text); err == nil {
			t.Errorf("%q: %+v", text, l)
		}
	}
}

// TestLeft: all that the program before has left is taken, once, and the pipe is closed.
func TestLeft(t *testing.T) {
	fdtest.NoLeaks(t)
	var pipe [2]int
	check(t, unix.Pipe2(pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC))
	defer unix.Close(pipe[1])
	_, err := unix.Write(pipe[1], []byte{byte(unix.SIGTTIN), byte(unix.SIGUSR2)})
	check(t, err)
	l := left{pipe[0], []syscall.Signal{unix.SIGUSR1}}
	if got, want := l.take(), []syscall.Signal{unix.SIGUSR1, unix.SIGTTIN, unix.SIGUSR2}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := l.take(); len(got) > 0 {
		t.Errorf("again: %v", got)
	}
}
