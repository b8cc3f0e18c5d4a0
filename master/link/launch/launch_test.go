package launch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// patience bounds what should happen soon.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	Main()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process takes a second to exit
	os.Exit(m.Run())
}

// start launches a command. Its end is waited for when the test ends.
func start(t *testing.T, c *Control, command ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	t.Cleanup(c.Close)
	command = c.Command(command)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.ExtraFiles = c.Files()
	unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // what we have inherited, as the supervisor does
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	fdtest.Check(t, cmd.Start())
	return cmd, &out, &errs
}

func open(t *testing.T, mode Mode, files ...*os.File) *Control {
	t.Helper()
	c, err := Open(mode, files...)
	fdtest.Check(t, err)
	return c
}

// listeners opens two, as blocking files.
func listeners(t *testing.T) []*os.File {
	t.Helper()
	var files []*os.File
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		fdtest.Check(t, err)
		file, err := ln.(*net.TCPListener).File()
		fdtest.Check(t, err)
		ln.Close()
		t.Cleanup(func() { file.Close() })
		files = append(files, file)
	}
	return files
}

// report is a program that tells what it finds.
const report = `
import os, json
files = {}
for fd in os.listdir('/proc/self/fd'):
    try: files[fd] = os.readlink('/proc/self/fd/' + fd)
    except OSError: pass  # that of the list itself
print(json.dumps({
    'PID': os.getpid(), 'Files': files, 'Env': dict(os.environ),
    'Status': dict(line.split(':\t') for line in open('/proc/self/status') if ':\t' in line),
    'Inheritable': [fd for fd in (3, 4) if str(fd) in files and os.get_inheritable(fd)],
    'Blocking': [fd for fd in (3, 4) if str(fd) in files and os.get_blocking(fd)],
}))`

type reported struct {
	PID                   int
	Files, Env, Status    map[string]string
	Inheritable, Blocking []int
}

func run(t *testing.T, c *Control) (*exec.Cmd, reported) {
	t.Helper()
	cmd, out, errs := start(t, c, "python3", "-c", report)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, errs)
	}
	var r reported
	fdtest.Check(t, json.Unmarshal(out.Bytes(), &r))
	return cmd, r
}

// TestFilterInheritsNothing: the command is the process that was started. It has no signal blocked or ignored, and of
// descriptors only its own.
func TestFilterInheritsNothing(t *testing.T) {
	c := open(t, BindSwap)
	cmd, got := run(t, c)
	pid, notifications, err := c.Hello()
	fdtest.Check(t, err)
	defer notifications.Close()
	if pid != cmd.Process.Pid || got.PID != pid {
		t.Errorf("hello of %d, command in %d, started %d", pid, got.PID, cmd.Process.Pid)
	}
	for fd, name := range got.Files {
		if fd > "2" && !strings.HasPrefix(name, "/proc/") {
			t.Errorf("descriptor %s is %s", fd, name)
		}
	}
	for field, want := range map[string]string{"SigBlk": "0000000000000000", "Seccomp": "2", "Seccomp_filters": "1"} {
		if value := strings.TrimSpace(got.Status[field]); value != want {
			t.Errorf("%s is %s, want %s", field, value, want)
		}
	}
	// Python itself ignores SIGPIPE and SIGXFSZ. What we ignore ourselves is the supervisor's
	// affair.
	if ignored, want := signals(t, got.Status["SigIgn"]), signals(t, ownStatus(t, "SigIgn"))|0x1001000; ignored != want {
		t.Errorf("ignored signals %x, want %x", ignored, want)
	}
	if privileged := os.Geteuid() == 0; (strings.TrimSpace(got.Status["NoNewPrivs"]) == "0") != privileged {
		t.Errorf("no_new_privs is %s for user %d", got.Status["NoNewPrivs"], os.Geteuid())
	}
}

func signals(t *testing.T, text string) (set uint64) {
	t.Helper()
	set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
	fdtest.Check(t, err)
	return set
}

// ownStatus returns a field of this process's status (man 5 proc).
func ownStatus(t *testing.T, field string) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	fdtest.Check(t, err)
	_, value, _ := strings.Cut(string(status), "\n"+field+":")
	value, _, _ = strings.Cut(value, "\n")
	return value
}

func TestActivate(t *testing.T) {
	files := listeners(t)
	c := open(t, Activate, files...)
	_, got := run(t, c)
	pid, none, err := c.Hello()
	if err != nil || none != nil || pid != got.PID {
		t.Errorf("hello of %d with %v, error %v; command in %d", pid, none, err, got.PID)
	}
	for i, file := range files {
		number := fmt.Sprint(3 + i)
		own, err := os.Readlink(fmt.Sprint("/proc/self/fd/", descriptor(t, file)))
		fdtest.Check(t, err)
		if got.Files[number] != own {
			t.Errorf("descriptor %s is %s, want %s", number, got.Files[number], own)
		}
		delete(got.Files, number)
	}
	for fd, name := range got.Files {
		if fd > "2" && !strings.HasPrefix(name, "/proc/") {
			t.Errorf("descriptor %s is %s", fd, name)
		}
	}
	if !slices.Equal(got.Inheritable, []int{3, 4}) {
		t.Errorf("inheritable: %v", got.Inheritable)
	}
	if got.Env["LISTEN_PID"] != fmt.Sprint(got.PID) {
		t.Errorf("LISTEN_PID=%s in process %d", got.Env["LISTEN_PID"], got.PID)
	}
}

// TestActivateKeepsNonBlocking: passing a listener leaves O_NONBLOCK alone, which is not the child's but the socket's
// (golang/go#43894).
func TestActivateKeepsNonBlocking(t *testing.T) {
	for _, nonBlocking := range []bool{false, true} {
		files := listeners(t)
		for _, file := range files {
			fdtest.Check(t, unix.SetNonblock(descriptor(t, file), nonBlocking))
		}
		// As a file that is in Go's poller.
		dup, err := unix.Dup(descriptor(t, files[0]))
		fdtest.Check(t, err)
		files[0] = os.NewFile(uintptr(dup), "listener")
		defer files[0].Close()
		c := open(t, Activate, files...)
		_, got := run(t, c)
		if want := map[bool][]int{false: {3, 4}, true: {}}[nonBlocking]; !slices.Equal(got.Blocking, want) {
			t.Errorf("non-blocking %v: blocking are %v", nonBlocking, got.Blocking)
		}
	}
}

func descriptor(t *testing.T, file *os.File) int {
	t.Helper()
	fd, err := borrow(file)
	fdtest.Check(t, err)
	return fd
}

// TestCommandsThatCannotRun: exit statuses and messages are a shell's.
func TestCommandsThatCannotRun(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	fdtest.Check(t, os.WriteFile(plain, []byte("no program"), 0o644))
	garbage := filepath.Join(dir, "garbage")
	fdtest.Check(t, os.WriteFile(garbage, []byte("no program"), 0o755))
	t.Setenv("PATH", os.Getenv("PATH")+":"+dir)
	for _, tt := range []struct {
		command string
		status  int
		message string
	}{
		{"handfast-no-such-program", exitNotFound, "executable file not found in $PATH"},
		{filepath.Join(dir, "none"), exitNotFound, "no such file"},
		{plain, exitCannotRun, "permission denied"},
		{dir, exitCannotRun, "is a directory"},
		{"garbage", exitCannotRun, "exec format error"},
	} {
		for _, mode := range []Mode{Activate, BindSwap} {
			cmd, _, errs := start(t, open(t, mode), tt.command)
			cmd.Wait()
			if status := cmd.ProcessState.ExitCode(); status != tt.status ||
				!strings.HasPrefix(errs.String(), "handfast: cannot run ") || !strings.Contains(errs.String(), tt.message) || !strings.Contains(errs.String(), tt.command) {
				t.Errorf("%s %s: status %d, says %q", mode, tt.command, status, errs)
			}
		}
	}
}

// TestFilterInFilter: a filter with notifications can be only one (EBUSY): what cannot be done is told to the
// master and on standard error.
func TestFilterInFilter(t *testing.T) {
	if os.Getenv("HANDFAST_TEST_ROLE") == "nested" {
		c := open(t, BindSwap)
		cmd, _, errs := start(t, c, "true")
		_, _, err := c.Hello()
		var failed *Error
		if !errors.As(err, &failed) || *failed != (Error{StepFilter, unix.EBUSY}) {
			t.Errorf("error %v", err)
		}
		cmd.Wait()
		if cmd.ProcessState.ExitCode() != exitCannotRun || !strings.Contains(errs.String(), "cannot run true: preparing the process: seccomp") {
			t.Errorf("%v, says %q", cmd.ProcessState, errs)
		}
		return
	}
	t.Setenv("HANDFAST_TEST_ROLE", "nested")
	cmd, out, errs := start(t, open(t, BindSwap), os.Args[0], "-test.run=^TestFilterInFilter$")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s%s", err, out, errs)
	}
}

// TestCloseEndsHello: Close ends a Hello that waits for a child which says nothing.
func TestCloseEndsHello(t *testing.T) {
	c := open(t, BindSwap)
	done := make(chan error)
	go func() {
		_, _, err := c.Hello()
		done <- err
	}()
	c.Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v", err)
		}
	case <-time.After(patience):
		t.Error("Hello goes on")
	}
}

// TestHelloOfStrangers: what says hello may be anything, for all we know.
func TestHelloOfStrangers(t *testing.T) {
	null, err := os.Open(os.DevNull)
	fdtest.Check(t, err)
	defer null.Close()
	for text, fds := range map[string]int{"pid 1": 0, "pid 2": 2, "pid 3": 1, "pid x": 1, "": 0, "error seccomp 0": 0, "error seccomp 22": 1} {
		c := open(t, BindSwap)
		before := len(fdtest.OpenFiles())
		fdtest.Check(t, unix.Sendmsg(descriptor(t, c.theirs), []byte(text), unix.UnixRights(slices.Repeat([]int{descriptor(t, null)}, fds)...), nil, 0))
		if pid, file, err := c.Hello(); err == nil || file != nil {
			t.Errorf("%q with %d descriptors: pid %d, file %v", text, fds, pid, file)
		}
		if !fdtest.Poll(func() bool { return len(fdtest.OpenFiles()) == before }) { // a goroutine closes them
			t.Errorf("%q with %d descriptors: %d are open, %d before", text, fds, len(fdtest.OpenFiles()), before)
		}
		c.Close()
	}
}

func FuzzHello(f *testing.F) {
	for _, text := range []string{"pid 1", "pid 4194304", "error seccomp 22", "error send 0", "pid -1", "pid 99999999999999999999"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		pid, err := parseHello(text)
		var failed *Error
		switch {
		case err == nil && pid <= 0, err != nil && pid != 0:
			t.Errorf("%q: pid %d, error %v", text, pid, err)
		case errors.As(err, &failed):
			if failed.Errno == 0 {
				t.Errorf("%q: an error that is none", text)
			}
			if again, err := parseHello(failed.hello()); again != 0 || !errors.As(err, &failed) {
				t.Errorf("%q: does not survive: %v", text, err)
			}
		case err == nil:
			if again, err := parseHello(pidHello(pid)); again != pid || err != nil {
				t.Errorf("%q: does not survive: %d, %v", text, again, err)
			}
		}
	})
}
