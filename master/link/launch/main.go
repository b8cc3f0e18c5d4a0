package launch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/seccomp"
)

// Exit statuses as a shell's.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

// Main does nothing unless this process is a launch; then it does not return. Call it
// before anything else opens descriptors or catches signals.
func Main() {
	if len(os.Args) < 5 || os.Args[1] != marker {
		return
	}
	runtime.LockOSThread() // a filter belongs to a thread, the one that calls execve
	n, err := strconv.Atoi(os.Args[3])
	if err != nil || n < 0 || n > maxListeners {
		os.Exit(exitCannotRun)
	}
	child := child{mode: Mode(os.Args[2]), listeners: n, control: firstInherited + n, command: os.Args[4:]}
	os.Exit(child.run())
}

// child is a launch as the child sees it. It uses descriptors only by number: Go's poller
// would open some.
type child struct {
	mode      Mode
	listeners int
	control   int
	command   []string
}

// run returns an exit status, and only if the process did not become the command.
func (c *child) run() int {
	unix.CloseOnExec(c.control)
	if failed := c.prepare(); failed != nil {
		unix.Sendmsg(c.control, failed.hello(), nil, nil, unix.MSG_NOSIGNAL)
		fmt.Fprintf(os.Stderr, "handfast: cannot run %s: %v\n", c.command[0], failed)
		return exitCannotRun
	}
	switch c.mode {
	case Probe:
		return probe(c.command[0], false)
	case ProbeAccept:
		return probe(c.command[0], true)
	}
	path, err := exec.LookPath(c.command[0])
	if err == nil {
		err = &exec.Error{Name: c.command[0], Err: syscall.Exec(path, c.command, os.Environ())}
	}
	fmt.Fprintf(os.Stderr, "handfast: cannot run %v\n", err)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return exitNotFound
	}
	return exitCannotRun
}

// prepare does what is asked for, and says hello.
func (c *child) prepare() *Error {
	var rights []byte
	if c.mode == Activate {
		if err := c.activate(); err != nil {
			return err
		}
	} else {
		notifications, err := c.mode.filter().Install()
		if err != nil {
			return filterFailed(err)
		}
		rights = unix.UnixRights(notifications)
	}
	if err := unix.Sendmsg(c.control, pidHello(os.Getpid()), rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return failed(StepSend, err)
	}
	return nil
}

// activate puts the listeners where the program will look for them.
func (c *child) activate() *Error {
	if c.listeners > 0 {
		text, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*maxListeners))
		_, n, _, _, err := unix.Recvmsg(c.control, text, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return failed(StepReceive, err)
		}
		fds := parseRights(oob[:n])
		if len(fds) != c.listeners {
			return failed(StepReceive, unix.EMFILE)
		}
		for i, fd := range fds {
			if err := unix.Dup3(fd, firstInherited+i, 0); err != nil {
				return failed(StepReceive, err)
			}
		}
	}
	if err := os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())); err != nil {
		return failed(StepReceive, unix.EINVAL)
	}
	return nil
}

// filterFailed says which step of installing a filter has failed.
func filterFailed(err error) *Error {
	switch {
	case errors.Is(err, seccomp.ErrArchitecture):
		return failed(StepPlatform, err)
	case errors.Is(err, seccomp.ErrNoNewPrivs):
		return failed(StepNewPrivs, err)
	}
	return failed(StepFilter, err)
}

func failed(step Step, err error) *Error {
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno == 0 {
		errno = unix.EIO
	}
	return &Error{step, errno}
}

// probe binds a port of 127.0.0.1, and exits with 0 if it has a listening socket then although
// it did not ask to listen, since ours was exchanged for one of the master's; and if it accepts a
// connection there, should that be wanted too.
func probe(port string, accepts bool) int {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return exitCannotRun
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 1
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(n), Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 1
	}
	if listening, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); listening == 0 {
		return 1
	}
	if accepts {
		if _, _, err := unix.Accept(fd); err != nil {
			return 1
		}
	}
	return 0
}
