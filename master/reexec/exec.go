package reexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/pgroup"
)

const (
	// rehearsalTimeout is how long the next program may take until it could begin.
	rehearsalTimeout = 10 * time.Second
	// leftoverTimeout is how long its children may take to end when they are killed.
	leftoverTimeout = time.Second
	leftoverPoll    = time.Millisecond
	// maxComplaint is how much of what a rehearsal writes is kept: the end.
	maxComplaint = 4 << 10
	// ready is what a rehearsal says when all went well.
	ready = "ready"
)

// Program is what to run.
type Program struct {
	Path string   // a file; it is not looked for
	Args []string // with the program's own name
	Env  []string
}

// ErrRehearsal: the next program has not come up when it was tried. What it said follows.
var ErrRehearsal = errors.New("the new program does not come up")

// Rehearsal is a program that is being tried.
type Rehearsal struct {
	program Program
	pid     int
	said    *os.File
}

// Rehearse begins to try a program with the bundle, in a child that ends before it acts. It is
// another process already when this returns; call Wait. Lock must be held, so that the descriptors
// are those of the bundle.
func (b *Bundle) Rehearse(p Program) (*Rehearsal, error) {
	memory, err := b.write()
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	said, end, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("reexec: %w", err)
	}
	defer end.Close()
	pid, err := b.start(p, memory, end)
	if err != nil {
		said.Close()
		return nil, fmt.Errorf("%w: %s: %w", ErrRehearsal, p.Path, err)
	}
	return &Rehearsal{p, pid, said}, nil
}

// Wait waits for the end of the rehearsal, and ends what it has started. The error matches ErrRehearsal
// when the program could not begin, and tells what it wrote.
func (r *Rehearsal) Wait(ctx context.Context) error {
	said, pid, p := r.said, r.pid, r.program
	defer said.Close()
	ctx, cancel := context.WithTimeout(ctx, rehearsalTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { unix.Kill(-pid, unix.SIGKILL) }) // ours until it is reaped
	var text []byte
	read := make(chan error, 1)
	go func() {
		var err error
		text, err = io.ReadAll(said)
		read <- err
	}()
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	late := !stop()
	left := endGroup(pid)
	said.SetReadDeadline(time.Now().Add(leftoverTimeout))
	held := <-read
	text = bytes.TrimSpace(text)
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			break
		}
	}
	_, ok := bytes.CutSuffix(text, []byte(ready))
	switch {
	case late:
		return fmt.Errorf("%w: it took longer than %v%s", ErrRehearsal, rehearsalTimeout, quote(text))
	case status.Signaled():
		return fmt.Errorf("%w: %s was ended by signal %v%s", ErrRehearsal, p.Path, status.Signal(), quote(text))
	case status.ExitStatus() != 0:
		return fmt.Errorf("%w: %s ended with status %d%s", ErrRehearsal, p.Path, status.ExitStatus(), quote(text))
	case !ok:
		return fmt.Errorf("%w: %s is no handfast that can take over%s", ErrRehearsal, p.Path, quote(text))
	case len(left) > 0:
		return fmt.Errorf("%w: processes %v, which %s has started, cannot be killed and hold what is open", ErrRehearsal, left, p.Path)
	case held != nil:
		return fmt.Errorf("%w: %s has started a process that left its group (a daemon?) and holds what is open", ErrRehearsal, p.Path)
	}
	return nil
}

// endGroup kills what a rehearsal that has ended has left of its process group: each holds all
// descriptors of the bundle, so that a listener would go on listening when it is closed here. It
// returns whom that does not end.
func endGroup(pgid int) (left []int) {
	for end := time.Now().Add(leftoverTimeout); ; time.Sleep(leftoverPoll) {
		left = pgroup.Left(pgid, left)
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
		unix.Kill(-pgid, unix.SIGKILL)
	}
}

// quote is the end of what a program has written.
func quote(text []byte) string {
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return ""
	}
	return ": " + strings.ToValidUTF8(string(text[max(0, len(text)-maxComplaint):]), "?")
}

// start starts a rehearsal. Its descriptors have the numbers that they have here.
func (b *Bundle) start(p Program, memory, output *os.File) (pid int, err error) {
	bundle := int(memory.Fd())
	highest := max(bundle, unix.Stderr)
	for fd := range b.files {
		highest = max(highest, fd)
	}
	const closed = ^uintptr(0)
	files := make([]uintptr, highest+1)
	for i := range files {
		files[i] = closed
	}
	for fd := range b.files {
		files[fd] = uintptr(fd)
	}
	files[bundle] = uintptr(bundle)
	files[unix.Stdout], files[unix.Stderr] = output.Fd(), output.Fd()
	pid, err = syscall.ForkExec(p.Path, p.Args, &syscall.ProcAttr{
		Env:   append(slices.Clone(p.Env), pass(toRehearse, bundle)),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	runtime.KeepAlive(memory)
	runtime.KeepAlive(output)
	return pid, err
}

func pass(reason why, fd int) string { return fmt.Sprintf("%s=%s:%d", variable, reason, fd) }

// Ready ends the program, if it is a rehearsal: it could begin. It returns an error if it could not go on with all
// that was left to it.
func (b *Bundle) Ready() error {
	if !b.IsRehearsal() {
		return nil
	}
	if err := b.unread(); err != nil {
		return err
	}
	fmt.Println(ready)
	os.Exit(0) // nothing that was to be done at the end is ours to do
	return nil
}

// lingerOff has no socket linger but those that stay: execve closes them, and what a worker has set on one
// that it has had would make it wait (fdpass.CloseConnections).
func (b *Bundle) lingerOff() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if _, stays := b.files[fd]; err == nil && !stays {
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
		}
	}
}

// Exec replaces this program, and returns only if that failed: then nothing has changed, except
// that processes that are started later inherit the raised limit of open files. Lock must be
// held for writing.
func (b *Bundle) Exec(p Program) error {
	memory, err := b.write()
	if err != nil {
		return err
	}
	defer memory.Close()
	bundle := int(memory.Fd())
	stay := append(slices.Sorted(maps.Keys(b.files)), bundle)

	runtime.LockOSThread() // whose mask of signals goes on
	defer runtime.UnlockOSThread()
	mask, before := maskOf(signals), unix.Sigset_t{}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &mask, &before); err != nil {
		return fmt.Errorf("reexec: %w", os.NewSyscallError("rt_sigprocmask", err))
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	defer ignore(unix.SIGHUP)() // or it would end the next program
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)

	b.lingerOff()
	syscall.ForkLock.Lock() // no child is to inherit them
	for _, fd := range stay {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	err = syscall.Exec(p.Path, p.Args, append(slices.Clone(p.Env), pass(toResume, bundle)))
	for _, fd := range stay {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.Unlock()
	unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) // which syscall.Exec has put back to what it was at the start
	runtime.KeepAlive(memory)
	return fmt.Errorf("reexec: %s: %w", p.Path, os.NewSyscallError("execve", err))
}
