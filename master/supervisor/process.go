package supervisor

import (
	"cmp"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/pgroup"
	"github.com/handfast/handfast/master/reexec"
)

// Spec says how to start one worker process.
type Spec struct {
	Command   []string
	Directory string     // where it runs; empty: where the master does
	Env       []string   // added to, and replacing, the master's environment
	Files     []*os.File // borrowed; become descriptors 3 and up
	Rights    Rights

	Stdout, Stderr *os.File // borrowed; nil: the master's own
}

// Rights are what a worker may do on this machine. The zero value: what the master may.
type Rights struct {
	Env        []string            // what its programs expect of a user: USER, LOGNAME, HOME
	User       *syscall.Credential // the user that it runs as; nil: the master's. Only root can choose.
	NoNewPrivs bool                // set-user-ID programs give it none (man 2 prctl, PR_SET_NO_NEW_PRIVS)
}

// Process is a running worker: the process that was started, and all of its process group. Signal
// may be called at any time, reaches the whole group, and does nothing after Wait.
type Process interface {
	PID() int
	Signal(sig syscall.Signal)
	Await() Exit // waits until the first process has ended; it is a zombie then
	// Rest returns the others of the group that have not ended, between Await and Wait: until the
	// first one is reaped, the number of both can be nobody else's. One goroutine asks.
	Rest() []int
	Wait() Exit // Await, and then reaps it; once
}

// process is a child with a process group of its own, so that a Ctrl-C at the
// terminal reaches the master alone, and a signal of ours reaches also what a
// wrapper such as sh or npm has started.
type process struct {
	pid    int
	rest   []int // as it was returned last
	mu     sync.Mutex
	reaped bool // its pid may be somebody else's soon
}

// StartProcess starts a worker. It gets standard output and error and the
// files of spec, and no other descriptor; its standard input is /dev/null. It
// ignores no signal, also if we were started so. Its limit of open files is the
// one that we were started with: the Go runtime gives it back to a child.
func StartProcess(spec Spec) (Process, error) {
	cmd := exec.Command(spec.Command[0], spec.Command[1:]...)
	cmd.Stdout, cmd.Stderr = cmp.Or(spec.Stdout, os.Stdout), cmp.Or(spec.Stderr, os.Stderr)
	cmd.Env = append(environ(), spec.Env...)
	cmd.Dir = spec.Directory
	cmd.ExtraFiles = spec.Files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: spec.Rights.User}
	catchIgnored()
	// Descriptors that we inherited ourselves are not close-on-exec. Before Linux 5.11 it leaks.
	unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	start := func() error { return withoutBPF(func() error { return reexec.Unblocked(cmd.Start) }) }
	if spec.Rights.NoNewPrivs {
		unblocked := start
		start = func() error { return withoutNewPrivs(unblocked) }
	}
	pid := 0
	ours.startBegins()
	defer func() { ours.startEnds(pid) }()
	if err := start(); err != nil {
		return nil, err
	}
	pid = cmd.Process.Pid
	cmd.Process.Release() // waiting for it is ours
	return &process{pid: pid}, nil
}

// AdoptProcess returns a worker that the program before has started, whose parent is this one now.
func AdoptProcess(pid int) Process {
	ours.add(pid)
	return &process{pid: pid}
}

// mastersAlone are the capabilities by which a master that is not root loads eBPF (package reuseport). A service manager gives them as
// ambient ones, which are for children, too.
var mastersAlone = []uintptr{unix.CAP_BPF, unix.CAP_PERFMON}

// withoutBPF calls f on a thread whose children do not get what is the master's alone.
func withoutBPF(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, capability := range mastersAlone {
		if set, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, capability, 0, 0); err != nil || set == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_LOWER, capability, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
		defer unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, capability, 0, 0)
	}
	return f()
}

// withoutNewPrivs calls f on a thread that can gain no rights any more, and neither can what
// it starts. The thread ends with that.
func withoutNewPrivs(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			result <- withoutNewPrivs(f) // on another one: the first thread does not end
			return
		}
		err := os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// caught is where signals go that we ignore.
var caught = make(chan os.Signal, 1)

// catchIgnored ignores by catching. A signal that is ignored, say because of nohup
// or of a shell's &, stays ignored across exec (man 2 execve); one that is caught
// is reset. The Go runtime resets only those that it catches itself, and leaves
// SIGHUP, SIGINT and the job control signals as they were (os/signal).
//
// The first three real-time signals belong to the C library, and os/signal does not
// catch them: they get their default action back here already. Nobody sends them.
func catchIgnored() {
	for sig := syscall.Signal(1); sig <= lastSignal; sig++ {
		switch {
		case !reexec.Ignored(sig): // signal.Ignored does not know of job control signals
		case sig >= 32 && sig <= 34:
			reexec.ResetSignal(sig)
		default:
			signal.Notify(caught, sig)
		}
	}
}

const lastSignal = 64

// environ is our environment without what is meant for the master alone: the
// sockets and the notifications of systemd (man 3 sd_listen_fds, sd_notify).
func environ() []string {
	var env []string
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID":
		default:
			env = append(env, v)
		}
	}
	return env
}

func (p *process) PID() int { return p.pid }

// Signal signals the whole process group.
func (p *process) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		unix.Kill(-p.pid, sig)
	}
}

// Await waits until the process has ended. Until it is reaped the pid stays ours.
func (p *process) Await() Exit {
	var info siginfo
	for {
		switch err := unix.Waitid(unix.P_PID, p.pid, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, nil); {
		case err == unix.EINTR:
		case err != nil:
			return Exit{Code: -1} // somebody else has reaped it
		case info.code == cldExited:
			return Exit{Code: int(info.status)}
		default:
			return Exit{Code: -1, Signal: syscall.Signal(info.status).String()}
		}
	}
}

// siginfo is the kernel's siginfo_t of 64-bit machines as waitid(2) fills it.
type siginfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

// cldExited: the status is that of exit(2), else it is a signal (CLD_EXITED).
const cldExited = 1

// Rest returns the others of the group.
func (p *process) Rest() []int {
	p.rest = pgroup.Left(p.pid, p.rest)
	return p.rest
}

// Wait takes no time after Await.
func (p *process) Wait() Exit {
	exit := p.Await()
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	ours.reap(p.pid)
	return exit
}
