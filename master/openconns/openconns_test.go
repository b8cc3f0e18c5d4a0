package openconns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// bound is the longest that a test waits for anything.
const bound = 20 * time.Second

// role has this program serve on the listener that is its descriptor 3: it says "accepted" for each
// connection, answers a line with a line, and closes a connection that has sent "close". With "fork" it
// does so in a child in a process group of its own.
const role = "HANDFAST_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "serve":
		serve()
	case "fork":
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), role+"=serve")
		cmd.Stdout, cmd.ExtraFiles = os.Stdout, []*os.File{os.NewFile(3, "listener")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		cmd.Run()
	default:
		os.Exit(m.Run())
	}
}

func serve() {
	ln, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		panic(err)
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		fmt.Println("accepted")
		go func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan() && lines.Text() != "close"; {
				if lines.Text() != "wait" {
					fmt.Fprintln(conn, "answer")
				}
			}
		}()
	}
}

// stage is a process that serves, and its listener.
type stage struct {
	t    *testing.T
	ln   net.Listener
	pid  int
	said *bufio.Scanner
	*Finder
}

func newStage(t *testing.T, as string) *stage {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"="+as)
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return &stage{t, ln, cmd.Process.Pid, bufio.NewScanner(out), New(func() []uint16 { return []uint16{ln.Addr().(*net.TCPAddr).AddrPort().Port()} })}
}

// dial opens a connection that the process has accepted.
func (s *stage) dial() net.Conn {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.ln.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	if !s.said.Scan() {
		s.t.Fatal("not accepted")
	}
	return conn
}

// becomes waits until a question is answered so.
func (s *stage) becomes(what string, want bool, ask func(int) (bool, error)) {
	s.t.Helper()
	for end := time.Now().Add(bound); ; time.Sleep(fresh) {
		switch got, err := ask(s.pid); {
		case err != nil:
			s.t.Fatalf("%s: %v", what, err)
		case got == want:
			return
		case time.Now().After(end):
			s.t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
}

// TestOpen: connections are a worker's if a process of it has them, in whatever process group.
func TestOpen(t *testing.T) {
	for _, as := range []string{"serve", "fork"} {
		t.Run(as, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, as)
			other := newStage(t, "serve")
			both := append(s.ports(), other.ports()...)
			s.ports = func() []uint16 { return both }
			other.dial()
			s.becomes("nobody has come", false, s.Open)
			conn := s.dial()
			s.becomes("accepted", true, s.Open)
			fmt.Fprintln(conn, "close")
			io.ReadAll(conn)
			s.becomes("closed by the worker", false, s.Open)
			conn = s.dial()
			conn.(*net.TCPConn).CloseWrite()
			io.ReadAll(conn)
			s.becomes("closed by the client", false, s.Open)
			s.becomes("the other one's", true, func(int) (bool, error) { return s.Open(other.pid) })
		})
	}
}

// TestBusy: a connection that is kept alive is not busy; one whose request has no answer is.
func TestBusy(t *testing.T) {
	t.Parallel()
	s := newStage(t, "serve")
	conn := s.dial()
	s.becomes("a moment ago", true, s.Busy)
	fmt.Fprintln(conn, "hello")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	s.becomes("answered", false, s.Busy)
	s.becomes("answered", true, s.Open)
	fmt.Fprintln(conn, "wait")
	time.Sleep(2 * still) // is what is on trial: that time alone does not make it idle
	if is, err := s.Busy(s.pid); !is || err != nil {
		t.Errorf("not answered: busy is %v (%v)", is, err)
	}
	fmt.Fprintln(conn, "close")
	io.ReadAll(conn)
	s.becomes("closed", false, s.Busy)
	fmt.Fprintln(s.dial(), "wait") // at once
	time.Sleep(2 * still)
	if is, err := s.Busy(s.pid); !is || err != nil {
		t.Errorf("first request not answered: busy is %v (%v)", is, err)
	}
}

// TestAwait: it ends when nothing was seen twice, when it is stopped, and when it cannot see.
func TestAwait(t *testing.T) {
	answers := []bool{false, true, false, true, true}
	asked := 0
	done, err := Await(nil, func() (bool, error) { asked++; return answers[asked-1], nil })
	if !done || err != nil || asked != len(answers) {
		t.Errorf("%v, %v after %d of %d looks", done, err, asked, len(answers))
	}
	stop := make(chan struct{})
	close(stop)
	if done, err := Await(stop, func() (bool, error) { return false, nil }); done || err != nil {
		t.Errorf("stopped: %v, %v", done, err)
	}
	if done, err := Await(nil, func() (bool, error) { return true, ErrHidden }); done || !errors.Is(err, ErrHidden) {
		t.Errorf("hidden: %v, %v", done, err)
	}
}

func TestParseStat(t *testing.T) {
	r, ok := parseStat("12 (a) S 9 (b)) S 1 34 34 0 -1")
	if want := (relation{1, 34}); r != want || !ok {
		t.Errorf("%v, %v, want %v", r, ok, want)
	}
	for _, text := range []string{"", "12", "12 (a) S", "12 (a) S x y"} {
		if _, ok := parseStat(text); ok {
			t.Errorf("%q is understood", text)
		}
	}
}

// TestAwaitBusyMachine: a look that takes long, since others have the processors, does not put off the next one: a worker that has nothing left would stay.
func TestAwaitBusyMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, looks := time.Now(), 0
		done, err := Await(nil, func() (bool, error) {
			time.Sleep(200 * time.Millisecond)
			looks++
			return looks > 1, nil
		})
		if took := time.Since(begun); !done || err != nil || took > 2*time.Second {
			t.Errorf("%v, %v after %v and %d looks", done, err, took, looks)
		}
	})
}
