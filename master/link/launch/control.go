package launch

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/seccomp"
)

// Mode is what a launch does before the command runs.
type Mode string

// The modes.
const (
	Activate Mode = "activate" // pass listeners, as systemd does (man 3 sd_listen_fds)
	// BindSwap installs the filter seccomp.Bind, and sends its notifications to us.
	BindSwap Mode = "bindswap"
	// AcceptInject does the same with seccomp.BindAccept.
	AcceptInject Mode = "acceptinject"
	// Probe installs the filter like BindSwap, and then binds, instead of running a command, the
	// port of 127.0.0.1 that stands in its place: to see whether that works.
	Probe Mode = "probe"
	// ProbeAccept is Probe with the filter of AcceptInject, and accepts a connection.
	ProbeAccept Mode = "probe-accept"
)

// filter returns which filter a mode installs.
func (m Mode) filter() seccomp.Filter {
	if m == AcceptInject || m == ProbeAccept {
		return seccomp.BindAccept
	}
	return seccomp.Bind
}

const (
	// marker is the first argument of a launch. Nobody types it.
	marker = "handfast:launch"
	// firstInherited is the number under which a child sees its first extra file (os/exec).
	firstInherited = 3
	// maxListeners is how many listeners a worker may be passed: many fewer than fit into
	// one message.
	maxListeners = 64
	// maxRights is how many descriptors one message can carry (SCM_MAX_FD, net/core/scm.h).
	maxRights = 253
)

// Control is the master's side of one launch: a socketpair whose other end the child
// inherits, until it becomes the command.
type Control struct {
	mode      Mode
	listeners int
	ours      *net.UnixConn
	theirs    *os.File
	closing   sync.Once
}

// Open prepares a launch. It borrows the listeners, which are for Activate: the child
// gets its own copies, also if ours are closed before it runs.
func Open(mode Mode, listeners ...*os.File) (*Control, error) {
	if len(listeners) > maxListeners {
		return nil, fmt.Errorf("%d listeners, at most %d can be passed", len(listeners), maxListeners)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("preparing the start of a worker: %w", os.NewSyscallError("socketpair", err))
	}
	c := &Control{mode: mode, listeners: len(listeners), theirs: os.NewFile(uintptr(fds[1]), "launch")}
	ours := os.NewFile(uintptr(fds[0]), "launch")
	conn, err := net.FileConn(ours)
	ours.Close() // conn is a duplicate
	if err == nil {
		c.ours = conn.(*net.UnixConn)
		err = c.send(listeners)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("preparing the start of a worker: %w", err)
	}
	return c, nil
}

// send queues the listeners for the child. They do not take the way of Files: os/exec would
// switch O_NONBLOCK off, and so also for the workers that share them (golang/go#43894).
func (c *Control) send(listeners []*os.File) error {
	if len(listeners) == 0 {
		return nil
	}
	var fds []int
	for _, file := range listeners {
		fd, err := borrow(file)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	_, _, err := c.ours.WriteMsgUnix([]byte{byte(len(fds))}, unix.UnixRights(fds...), nil)
	runtime.KeepAlive(listeners)
	return err
}

// borrow returns a file's descriptor without making it blocking, as Fd would.
func borrow(file *os.File) (int, error) {
	number := -1
	err := sock.Control(file, func(fd int) error { number = fd; return nil })
	return number, err
}

// Files returns what the child inherits as descriptors 3 and up; the Control goes on
// owning it. There is a place for each listener, so that what the Go runtime opens in the
// child lies above them.
func (c *Control) Files() []*os.File {
	files := make([]*os.File, c.listeners+1)
	for i := range files {
		files[i] = c.theirs
	}
	return files
}

// Command returns what to start in order to have command launched.
func (c *Control) Command(command []string) []string {
	return append([]string{"/proc/self/exe", marker, string(c.mode), strconv.Itoa(c.listeners)}, command...)
}

// Hello waits until the child is about to become the command, and returns its pid and,
// unless it is for Activate, its notifications, which the caller owns. It fails with an
// *Error when the child could not do what it should, and with another error when that has
// said nothing and Close was called.
func (c *Control) Hello() (pid int, notifications *os.File, err error) {
	text, rights := make([]byte, maxHello), make([]byte, unix.CmsgSpace(4*maxRights))
	n, rn, flags, _, err := c.ours.ReadMsgUnix(text, rights)
	if err != nil {
		return 0, nil, fmt.Errorf("preparing the start of a worker: %w", err)
	}
	fds := parseRights(rights[:rn])
	pid, err = parseHello(text[:n])

	want := 1
	if c.mode == Activate {
		want = 0
	}
	switch {
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0 || len(fds) < want:
		err = fmt.Errorf("preparing the start of a worker: the descriptor of the notifications did not arrive: %w", unix.EMFILE)
	case len(fds) > want:
		err = fmt.Errorf("preparing the start of a worker: %d descriptors, want %d: %w", len(fds), want, unix.EPROTO)
	case want == 1 && !isFilter(fds[0]):
		err = fmt.Errorf("preparing the start of a worker: the descriptor is none of a filter: %w", unix.EPROTO)
	case want == 1:
		unix.SetNonblock(fds[0], true)
		return pid, os.NewFile(uintptr(fds[0]), "seccomp notifications"), nil
	default:
		return pid, nil, nil
	}
	new(fdpass.Bin).Discard(fds...) // the child is the worker's user's, and so may be who says this
	return 0, nil, err
}

// isFilter tells whether a descriptor is that of a filter's notifications (kernel/seccomp.c). The child is the
// worker's user's already, so it may be anything, of which nothing must be asked that it could answer otherwise.
func isFilter(fd int) bool {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && strings.HasPrefix(name, "anon_inode:seccomp notify")
}

// Close ends Hello. The child, should it live still, goes on. There may be no Control, if the
// program before has made it.
func (c *Control) Close() {
	if c == nil {
		return
	}
	c.closing.Do(func() {
		if c.ours != nil {
			c.ours.Close()
		}
		c.theirs.Close()
	})
}

// parseRights returns the descriptors of a control message, which the caller owns.
func parseRights(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var all []int
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}
