//go:build amd64

package nthcall

import (
	"bufio"
	"debug/gosym"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// marker is the first argument of a process that is a tracer.
const marker = "trace-and-fail-calls"

// Available: processes can be traced on this machine's architecture.
const Available = true

// Main does nothing unless this process is a tracer; then it does not return. The main function of a test binary calls it first
// thing.
func Main() {
	if len(os.Args) != 3 || os.Args[1] != marker {
		return
	}
	runtime.LockOSThread() // a tracer is a thread
	pid, err := strconv.Atoi(os.Args[2])
	if err != nil {
		os.Exit(2)
	}
	t := &tracer{pid: pid, threads: make(map[int]*thread), out: json.NewEncoder(os.Stdout)}
	if err := t.attach(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go t.listen()
	t.run()
	os.Exit(0)
}

// tracer stops the threads of a process and of its children, and lets them go on.
type tracer struct {
	pid     int
	exe     string       // what it runs
	table   *gosym.Table // its functions
	threads map[int]*thread

	mu   sync.Mutex // of what follows
	rule *Rule
	out  *json.Encoder
}

// thread is one that is traced.
type thread struct {
	child  bool  // of another process
	failed *Rule // the call that it is in is to fail
}

const traced = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC

// attach begins with all threads that are there.
func (t *tracer) attach() error {
	t.look()
	seen := make(map[int]bool)
	for more := true; more; {
		more = false
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", t.pid))
		if err != nil || len(tasks) == 0 {
			return fmt.Errorf("process %d has no threads: %v", t.pid, err)
		}
		for _, task := range tasks {
			tid, _ := strconv.Atoi(filepath.Base(task))
			if seen[tid] {
				continue
			}
			more, seen[tid] = true, true
			switch err := ptrace(unix.PTRACE_SEIZE, tid, 0, traced); {
			case err == unix.ESRCH: // it has ended
			case err == unix.EPERM && len(t.threads) > 0: // it is traced, as it was made by a thread that is
			case err != nil:
				return fmt.Errorf("ptrace: %w", err)
			default:
				t.threads[tid] = new(thread)
				ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)
			}
		}
	}
	t.out.Encode(order{})
	return nil
}

// look notes what the process runs.
func (t *tracer) look() {
	if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", t.pid)); exe != t.exe {
		t.exe, t.table = exe, symbols(exe)
	}
}

// listen takes orders.
func (t *tracer) listen() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		t.mu.Lock()
		t.rule = o.Rule
		t.out.Encode(o)
		t.mu.Unlock()
	}
	os.Exit(0) // which lets go of all
}

// run follows the process until it ends.
func (t *tracer) run() {
	for {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return
		case status.Exited() || status.Signaled():
			delete(t.threads, tid)
			if tid == t.pid {
				return
			}
		case status.Stopped():
			t.stopped(tid, status)
		}
	}
}

// stopped lets a thread go on that has stopped.
func (t *tracer) stopped(tid int, status unix.WaitStatus) {
	th := t.threads[tid]
	if th == nil {
		th = &thread{child: tgid(tid) != t.pid}
		t.threads[tid] = th
	}
	signal, event := status.StopSignal(), int(status)>>16
	switch {
	case signal == syscall.SIGTRAP|0x80:
		t.call(tid, th)
		signal = 0
	case event == unix.PTRACE_EVENT_EXEC:
		th.failed, signal = nil, 0
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", tid))
		if tid != t.pid && exe != t.exe {
			delete(t.threads, tid)
			ptrace(unix.PTRACE_DETACH, tid, 0, 0)
			return
		}
		t.look()
	case event == unix.PTRACE_EVENT_STOP && signal != syscall.SIGTRAP:
		ptrace(unix.PTRACE_LISTEN, tid, 0, 0) // the process is stopped as a whole
		return
	case event != 0:
		signal = 0
	}
	ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(signal))
}

// call is for a thread at the beginning or the end of a call.
func (t *tracer) call(tid int, th *thread) {
	var regs unix.PtraceRegs
	if th.failed != nil { // at its end
		if unix.PtraceGetRegs(tid, &regs) == nil {
			regs.Rax = uint64(-int64(th.failed.Errno))
			unix.PtraceSetRegs(tid, &regs)
		}
		th.failed = nil
		return
	}
	t.mu.Lock()
	rule := t.rule
	t.mu.Unlock()
	if rule == nil || rule.Children != th.child {
		return
	}
	if unix.PtraceGetRegs(tid, &regs) != nil || regs.Orig_rax != rule.Call || int64(regs.Rax) != -int64(unix.ENOSYS) { // which it is before a call
		return
	}
	args := [6]uint64{regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9}
	if args[rule.Arg]&rule.Mask != rule.Value&rule.Mask {
		return
	}
	hit := Hit{stack(tid, regs.Rip, regs.Rsp, regs.Rbp, t.table)}
	if !rule.matches(hit.Stack) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case rule.Skip > 0:
		rule.Skip--
	case rule.Count != 0:
		rule.Count = max(rule.Count-1, -1)
		th.failed = rule
		if !rule.Done {
			regs.Orig_rax = ^uint64(0) // no call has this number
			unix.PtraceSetRegs(tid, &regs)
		}
		t.out.Encode(hit)
	}
}

// tgid returns the process of a thread.
func tgid(tid int) (pid int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	for line := range strings.Lines(string(status)) {
		if n, _ := fmt.Sscanf(line, "Tgid:\t%d", &pid); n == 1 {
			return pid
		}
	}
	return 0
}

func ptrace(request, pid int, addr, data uintptr) error {
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
