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
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/pgroup"
)

const (
	// dryRunTimeout is how long the next program may take until it could begin. Meanwhile this one serves; on a busy machine
	// it took longer than ten seconds.
	dryRunTimeout = 30 * time.Second
	// killedTimeout is how long its children may take to end when they are killed: on a busy machine it was more than a second.
	killedTimeout = 10 * time.Second
	killedPoll    = time.Millisecond
	// heldTimeout is how long what it writes may still be held open when all of them have ended.
	heldTimeout = time.Second
	// maxComplaint is how much of what a dry run writes is kept: the end.
	maxComplaint = 4 << 10
	// ready is what a dry run says when all went well.
	ready = "ready"
)

// Program is what to run.
type Program struct {
	Path string   // a file; it is not looked for
	Args []string // with the program's own name
	Env  []string
}

// ErrDryRun: the next program has not come up when it was tried. What it said follows.
var ErrDryRun = errors.New("the new program does not come up")

// dryRuns counts dry runs whose process may exist.
var dryRuns atomic.Int32

// DryRunUnderWay tells whether a program is being tried: one of this process's children may be its, for whose end
// DryRun.Wait waits.
func DryRunUnderWay() bool { return dryRuns.Load() > 0 }

// DryRun is a program that is being tried. It owns duplicates of the descriptors that the program gets.
type DryRun struct {
	program Program
	memory  *os.File // the bundle
	files   []uintptr
	said    *os.File // what it writes, and the end that it writes to
	end     *os.File
}

// DryRun prepares to try a program with the bundle, in a child that ends before it acts. Wait does
// so. Lock must be held, so that the descriptors are those of the bundle.
func (b *Bundle) DryRun(p Program) (*DryRun, error) {
	memory, err := b.write()
	if err != nil {
		return nil, err
	}
	r := &DryRun{program: p, memory: memory}
	if err := r.duplicate(b.files); err != nil {
		r.close()
		return nil, err
	}
	if r.said, r.end, err = os.Pipe(); err != nil {
		r.close()
		return nil, fmt.Errorf("reexec: %w", err)
	}
	return r, nil
}

// duplicate keeps descriptors as they are now. The program gets them under their numbers.
func (r *DryRun) duplicate(kept map[int]struct{}) error {
	highest := max(int(r.memory.Fd()), unix.Stderr)
	for fd := range kept {
		highest = max(highest, fd)
	}
	r.files = make([]uintptr, highest+1)
	for i := range r.files {
		r.files[i] = closed
	}
	for fd := range kept {
		// Behind all of them, so that none is in the way of another one in the child.
		number, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, highest+1)
		if err != nil {
			return fmt.Errorf("reexec: descriptor %d cannot be duplicated: %w", fd, os.NewSyscallError("fcntl", err))
		}
		r.files[fd] = uintptr(number)
	}
	return nil
}

// closed is a descriptor that a child does not get.
const closed = ^uintptr(0)

// close closes all that the program gets.
func (r *DryRun) close() {
	for _, fd := range r.files {
		if fd != closed {
			unix.Close(int(fd))
		}
	}
	r.memory.Close()
	if r.end != nil {
		r.end.Close()
	}
}

// start starts the program, and closes what it has got. It waits until execve(2) has succeeded.
func (r *DryRun) start() (pid int, err error) {
	defer r.close()
	bundle, output := r.memory.Fd(), r.end.Fd()
	files := slices.Clone(r.files)
	files[bundle], files[unix.Stdout], files[unix.Stderr] = bundle, output, output
	return syscall.ForkExec(r.program.Path, r.program.Args, &syscall.ProcAttr{
		Env:   append(slices.Clone(r.program.Env), pass(toDryRun, int(bundle))),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
}

// Wait starts the program and waits for its end, and ends what it has started. The error matches ErrDryRun
// when the program could not begin, and tells what it wrote. Lock must not be held: the program may be on a
// file system that does not answer.
func (r *DryRun) Wait(ctx context.Context) error {
	defer r.said.Close()
	ctx, cancel := context.WithTimeout(ctx, dryRunTimeout)
	defer cancel()
	type process struct {
		pid int
		err error
	}
	started, unwanted := make(chan process), make(chan struct{})
	dryRuns.Add(1)
	go func() {
		pid, err := r.start()
		select {
		case started <- process{pid, err}:
		case <-unwanted:
			defer dryRuns.Add(-1)
			if err == nil {
				unix.Kill(-pid, unix.SIGKILL)
				endGroup(pid)
				reap(pid)
			}
		}
	}()
	select {
	case p := <-started:
		defer dryRuns.Add(-1)
		if p.err != nil {
			return fmt.Errorf("%w: %s: %w", ErrDryRun, r.program.Path, p.err)
		}
		return r.wait(ctx, p.pid)
	case <-ctx.Done():
		close(unwanted)
		return fmt.Errorf("%w: %s could not be started within %v", ErrDryRun, r.program.Path, dryRunTimeout)
	}
}

// wait waits for the end of the program.
func (r *DryRun) wait(ctx context.Context, pid int) error {
	said, p := r.said, r.program
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
	said.SetReadDeadline(time.Now().Add(heldTimeout))
	held := <-read
	text = bytes.TrimSpace(text)
	status := reap(pid)
	_, ok := bytes.CutSuffix(text, []byte(ready))
	switch {
	case late:
		return fmt.Errorf("%w: it took longer than %v%s", ErrDryRun, dryRunTimeout, quote(text))
	case status.Signaled():
		return fmt.Errorf("%w: %s was ended by signal %v%s", ErrDryRun, p.Path, status.Signal(), quote(text))
	case status.ExitStatus() != 0:
		return fmt.Errorf("%w: %s ended with status %d%s", ErrDryRun, p.Path, status.ExitStatus(), quote(text))
	case !ok:
		return fmt.Errorf("%w: %s is no handfast that can take over%s", ErrDryRun, p.Path, quote(text))
	case len(left) > 0:
		return fmt.Errorf("%w: processes %v, which %s has started, cannot be killed and hold what is open", ErrDryRun, left, p.Path)
	case held != nil:
		return fmt.Errorf("%w: %s has started a process that left its group (a daemon?) and holds what is open", ErrDryRun, p.Path)
	}
	return nil
}

// endGroup kills what a dry run that has ended has left of its process group: each holds all
// descriptors of the bundle, so that a listener would go on listening when it is closed here. It
// returns the processes that survive.
func endGroup(pgid int) (left []int) {
	for end := time.Now().Add(killedTimeout); ; time.Sleep(killedPoll) {
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

// reap waits for a child.
func reap(pid int) (status syscall.WaitStatus) {
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			return status
		}
	}
}

func pass(reason why, fd int) string { return fmt.Sprintf("%s=%s:%d", variable, reason, fd) }

// Ready ends the program, if it is a dry run: it could begin. It returns an error if it could not go on with all
// that was left to it.
func (b *Bundle) Ready() error {
	if !b.IsDryRun() {
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
			sock.StopLingering(fd)
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
	handed, passed, undo, err := current.handOver()
	if err != nil {
		return err
	}
	defer undo()
	if handed >= 0 {
		stay = append(stay, handed)
	}
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)

	b.lingerOff()
	syscall.ForkLock.Lock() // no child is to inherit them
	for _, fd := range stay {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	env := append(slices.Clone(p.Env), pass(toResume, bundle)+passed)
	hear := ignore(unix.SIGHUP) // or it would end the next program
	err = syscall.Exec(p.Path, p.Args, env)
	hear()
	for _, fd := range stay {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.Unlock()
	unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) // which syscall.Exec has put back to what it was at the start
	runtime.KeepAlive(memory)
	return fmt.Errorf("reexec: %s: %w", p.Path, os.NewSyscallError("execve", err))
}
