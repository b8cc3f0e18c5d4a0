package supervisor

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// testRole makes the test binary play a worker, or a master in circumstances that
// the test itself cannot be in.
const testRole = "HANDFAST_TEST_ROLE"

// patience bounds what should happen soon.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	switch os.Getenv(testRole) {
	case "init":
		os.Exit(playInit())
	case "worker":
		os.Exit(playWorker())
	case "master":
		os.Exit(playMaster(os.Args[1:]))
	default:
		os.Exit(m.Run())
	}
}

// report is what a worker says about itself on its descriptor 3.
type report struct {
	PID, PGID int
	Env       []string
	Files     map[int]string
}

func playWorker() int {
	// Before anything else makes the runtime open descriptors of its own.
	r := report{PID: os.Getpid(), PGID: unix.Getpgrp(), Env: os.Environ(), Files: openFiles()}
	text, _ := json.Marshal(r)
	if _, err := unix.Write(3, text); err != nil {
		return 1
	}
	return 0
}

// openFiles names the open descriptors, except what the Go runtime itself opens:
// its poller, and the limit of CPU time (since Go 1.25).
func openFiles() map[int]string {
	files := map[int]string{}
	for fd := range 1024 {
		buf := make([]byte, 256)
		n, err := unix.Readlink(fmt.Sprint("/proc/self/fd/", fd), buf)
		name := string(buf[:max(n, 0)])
		if err == nil && !strings.HasPrefix(name, "anon_inode:[event") && !strings.HasPrefix(name, "/sys/fs/cgroup/") {
			files[fd] = name
		}
	}
	return files
}

// playMaster runs a command as a worker, to which it gives its own descriptor 3.
func playMaster(command []string) int {
	p, err := StartProcess(Spec{Command: command, Env: []string{testRole + "=worker"}, Files: []*os.File{os.NewFile(3, "report")}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	unix.Kill(os.Getpid(), unix.SIGHUP) // which it ignores still
	return p.Wait().Code
}

func TestWorkerInheritsNothingElse(t *testing.T) {
	fdtest.NoLeaks(t)
	for _, name := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		t.Setenv(name, "for the master")
	}
	t.Setenv("KEPT", "from the master")
	t.Setenv("REPLACED", "from the master")
	inherited, err := unix.Dup(1) // not close-on-exec, such as a shell may leave us
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()

	pipe := newPipe(t)
	p := start(t, Spec{
		Command: []string{self(t)},
		Env:     []string{testRole + "=worker", "GORACE=atexit_sleep_ms=0", "REPLACED=for the worker"},
		Files:   []*os.File{pipe.w, null},
	})
	pipe.w.Close()
	var got report
	if err := json.Unmarshal(pipe.rest(), &got); err != nil {
		t.Fatal(err)
	}
	if exit := p.Wait(); exit != (Exit{}) {
		t.Errorf("exit %v, want status 0", exit)
	}

	ours := openFiles()
	want := map[int]string{0: os.DevNull, 1: ours[1], 2: ours[2], 3: pipe.name, 4: os.DevNull}
	if !maps.Equal(got.Files, want) {
		t.Errorf("descriptors %v, want %v", got.Files, want)
	}
	if got.PID != p.PID() || got.PGID != got.PID {
		t.Errorf("pid %d in process group %d, want both %d", got.PID, got.PGID, p.PID())
	}
	for _, v := range got.Env {
		if strings.HasSuffix(v, "=for the master") {
			t.Errorf("environment has %s", v)
		}
	}
	for _, v := range []string{"KEPT=from the master", "REPLACED=for the worker"} {
		if !slices.Contains(got.Env, v) {
			t.Errorf("environment lacks %s", v)
		}
	}
}

// However the master was started, its workers have no signal blocked or ignored,
// no descriptor that a shell has left open, and the limit of open files that the
// master was given, although the Go runtime has raised its own (golang/go#46279).
func TestWorkerOfAnOddlyStartedMaster(t *testing.T) {
	status := []string{"sh", "-c", "grep -E '^Sig(Blk|Ign):' /proc/self/status >&3; ulimit -Sn >&3"}
	files := []string{self(t)}
	for name, tt := range map[string]struct {
		oddity string
		worker []string
		want   string
	}{
		"nohup":      {`trap "" HUP`, status, "SigIgn:\t0000000000000000"},
		"background": {`trap "" INT QUIT`, status, "SigIgn:\t0000000000000000"},
		"all":        {`trap "" HUP INT QUIT PIPE USR1 TERM CHLD CONT TSTP TTIN TTOU`, status, "SigIgn:\t0000000000000000"},
		"mask":       {`:`, status, "SigBlk:\t0000000000000000"},
		"file limit": {`trap "" HUP; ulimit -Sn 200`, status, "\n200\n"},
		"open file":  {`trap "" HUP; exec 7</dev/zero 9</dev/zero`, files, `"Files":{"0":"/dev/null","1":"/dev/null","2":"/dev/null","3":"pipe:`},
	} {
		t.Run(name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			pipe := newPipe(t)
			cmd := exec.Command("sh", append([]string{"-c", `trap "" HUP; ` + tt.oddity + `; exec "$0" "$@"`, self(t)}, tt.worker...)...)
			cmd.Env = append(os.Environ(), testRole+"=master", "GORACE=atexit_sleep_ms=0")
			cmd.ExtraFiles = []*os.File{pipe.w}
			start := cmd.Start
			if name == "mask" {
				start = func() error { return startBlocked(cmd) }
			}
			if err := start(); err != nil {
				t.Fatal(err)
			}
			pipe.w.Close()
			got := string(pipe.rest())
			if err := cmd.Wait(); err != nil {
				t.Errorf("master: %v", err)
			}
			if !strings.Contains(got, tt.want) || strings.Contains(got, "/dev/zero") {
				t.Errorf("worker reports\n%s\nwant %q", got, tt.want)
			}
		})
	}
}

func TestExit(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":        "status 0",
		"exit 7":        "status 7",
		"kill -KILL $$": "signal killed",
		"kill -TERM $$": "signal terminated",
	} {
		fdtest.NoLeaks(t)
		if got := start(t, Spec{Command: []string{"sh", "-c", script}}).Wait(); got.String() != want {
			t.Errorf("%s: exit %v, want %s", script, got, want)
		}
	}
}

// A wrapper such as sh or npm does not pass signals on.
func TestSignalReachesWhatAWrapperStarted(t *testing.T) {
	fdtest.NoLeaks(t)
	pipe := newPipe(t)
	p := start(t, Spec{Command: []string{"sh", "-c", "sh -c 'echo up >&3; exec sleep 1000'; :"}, Files: []*os.File{pipe.w}})
	pipe.w.Close()
	pipe.wants("up")
	p.Signal(syscall.SIGTERM)
	if got, want := p.Wait(), (Exit{Code: -1, Signal: "terminated"}); got != want {
		t.Errorf("exit %v, want %v", got, want)
	}
	pipe.rest() // returns when nobody has the other end open
}

// The number of the process, and so of its group, may be somebody else's by then:
// here it is a process that the worker left behind.
func TestSignalAfterTheEndDoesNothing(t *testing.T) {
	fdtest.NoLeaks(t)
	in, out := newPipe(t), newPipe(t)
	p := start(t, Spec{Command: []string{"sh", "-c", "cat <&4 >&3 & exit 0"}, Files: []*os.File{out.w, in.r}})
	in.r.Close()
	out.w.Close()
	p.Wait()
	p.Signal(syscall.SIGKILL)
	fmt.Fprintln(in.w, "alive")
	in.w.Close()
	out.wants("alive")
	out.rest()
}

func TestStartProcessFails(t *testing.T) {
	fdtest.NoLeaks(t)
	if _, err := StartProcess(Spec{Command: []string{"/does/not/exist"}}); !os.IsNotExist(err) {
		t.Errorf("error %v, want one that says that there is no such file", err)
	}
}

func start(t *testing.T, spec Spec) Process {
	t.Helper()
	p, err := StartProcess(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Signal(syscall.SIGKILL) })
	return p
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// pipe brings back what a worker says.
type pipe struct {
	t    *testing.T
	r, w *os.File
	text *bufio.Reader
	name string // of the open file
}

func newPipe(t *testing.T) *pipe {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	r.SetReadDeadline(time.Now().Add(patience))
	var stat unix.Stat_t
	raw, _ := r.SyscallConn()
	raw.Control(func(fd uintptr) { unix.Fstat(int(fd), &stat) })
	return &pipe{t, r, w, bufio.NewReader(r), fmt.Sprintf("pipe:[%d]", stat.Ino)}
}

func (p *pipe) wants(line string) {
	p.t.Helper()
	if got, err := p.text.ReadString('\n'); got != line+"\n" {
		p.t.Fatalf("worker says %q (%v), want %q", got, err, line)
	}
}

// rest returns all until the last writer has gone.
func (p *pipe) rest() []byte {
	p.t.Helper()
	text, err := io.ReadAll(p.text)
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// startBlocked starts a process that blocks two signals.
func startBlocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var blocked unix.Sigset_t
	blocked.Val[0] = 1<<(unix.SIGUSR1-1) | 1<<(unix.SIGWINCH-1)
	var before unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &blocked, &before); err != nil {
		return err
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	return cmd.Start()
}
