package seccomp

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
)

// filtered is a thread of this process that has a filter, and the notifications of that.
type filtered struct {
	*Notifications
	t    *testing.T
	does chan func()
}

// filter starts one. It ends with the test.
func filter(t *testing.T, f Filter) *filtered {
	t.Helper()
	fdtest.NoLeaks(t)
	type installed struct {
		fd  int
		err error
	}
	c, started, ended := &filtered{t: t, does: make(chan func())}, make(chan installed, 1), make(chan struct{})
	var work func()
	work = func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends
		if unix.Gettid() == unix.Getpid() {
			go work() // on another thread than this one, the main thread, which never ends
			<-ended
			runtime.UnlockOSThread()
			return
		}
		defer close(ended)
		fd, err := f.Install()
		started <- installed{fd, err}
		for do := range c.does {
			do()
		}
	}
	go work()
	got := <-started
	fdtest.Check(t, got.err)
	fdtest.Check(t, unix.SetNonblock(got.fd, true))
	var err error
	c.Notifications, err = NewNotifications(os.NewFile(uintptr(got.fd), "notifications"))
	fdtest.Check(t, err)
	t.Cleanup(func() {
		c.Close() // calls that wait fail
		close(c.does)
		<-ended
	})
	return c
}

// begin has the thread make a call, and returns its notification and, later, its result.
func (c *filtered) begin(call func() (int, error)) (n *Notification, result <-chan outcome) {
	c.t.Helper()
	results := make(chan outcome, 1)
	c.does <- func() {
		value, err := call()
		results <- outcome{value, err}
	}
	c.SetDeadline(time.Now().Add(fdtest.Patience))
	n = new(Notification)
	err := os.ErrDeadlineExceeded
	for end := time.Now().Add(fdtest.Patience); errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end); {
		err = c.Next(n)
	}
	fdtest.Check(c.t, err)
	reexec.Lock.RUnlock()
	if !c.StillValid(n.ID) {
		c.t.Error("it does not wait")
	}
	return n, results
}

type outcome struct {
	value int
	err   error
}

var loopback = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}

func tcp(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	fdtest.Check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestAnswers: a call waits until it is answered, and returns the answer.
func TestAnswers(t *testing.T) {
	c := filter(t, Bind)
	fd := tcp(t)
	for _, tt := range []struct {
		name    string
		answer  func(id uint64)
		want    error
		isBound bool
	}{
		{"an error", func(id uint64) { c.Answer(id, unix.EACCES) }, unix.EACCES, false},
		{"success", func(id uint64) { c.Answer(id, 0) }, nil, false},
		{"the kernel's", c.Continue, nil, true},
	} {
		n, result := c.begin(func() (int, error) { return 0, unix.Bind(fd, loopback) })
		if n.Call() != unix.SYS_BIND || n.Caller().FD != fd {
			t.Errorf("%s: call %d about descriptor %d", tt.name, n.Call(), n.Caller().FD)
		}
		tt.answer(n.ID)
		if got := fdtest.Receive(t, tt.name, result); got.err != tt.want {
			t.Errorf("%s: %v", tt.name, got.err)
		}
		if c.StillValid(n.ID) {
			t.Errorf("%s: it waits still", tt.name)
		}
		if at, err := sock.Local(fd); err != nil || (at.Port() != 0) != tt.isBound {
			t.Errorf("%s: bound to %v, %v", tt.name, at, err)
		}
	}
}

// TestCaller: what the calling thread has passed to the kernel, and what its descriptor is.
func TestCaller(t *testing.T) {
	c := filter(t, Bind)
	fd := tcp(t)
	n, result := c.begin(func() (int, error) {
		return 0, unix.Bind(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 9}})
	})
	caller := n.Caller()
	bound, family, ok, err := caller.BindAddress(n)
	if bound != netip.MustParseAddrPort("127.0.0.9:80") || family != unix.AF_INET || !ok || err != nil {
		t.Errorf("%v of family %d, %v, %v", bound, family, ok, err)
	}
	for family, want := range map[uint16]bool{unix.AF_INET: true, unix.AF_INET6: false} {
		if is, err := caller.IsTCP(family); is != want || err != nil {
			t.Errorf("family %d: %v, %v", family, is, err)
		}
	}
	if flags := caller.Flags(); flags&unix.O_NONBLOCK == 0 || flags&unix.O_CLOEXEC == 0 {
		t.Errorf("flags %o", flags)
	}
	if caller.OnlyIPv6() {
		t.Error("it is for IPv6 only")
	}
	c.Answer(n.ID, 0)
	fdtest.Receive(t, "end of bind", result)
}

// TestAddFD: accept returns a descriptor that is added to the caller's.
func TestAddFD(t *testing.T) {
	fdtest.NeedLinux(t, 5, 19)
	c := filter(t, BindAccept)
	_, conn := fdtest.Connection(t)
	defer unix.Close(conn)
	fd := tcp(t)
	n, result := c.begin(func() (int, error) {
		number, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(number), nil
	})
	if n.Call() != unix.SYS_ACCEPT4 || n.Args[3] != unix.SOCK_CLOEXEC {
		t.Errorf("call %d with flags %o", n.Call(), n.Args[3])
	}
	number, errno := c.AddFD(n.ID, conn, true)
	if errno != 0 {
		t.Fatal(errno)
	}
	if errno := c.Return(n.ID, number); errno != 0 {
		t.Fatal(errno)
	}
	got := fdtest.Receive(t, "accept", result)
	if got.err != nil || got.value != number || number == conn || fdtest.Inode(t, number) != fdtest.Inode(t, conn) {
		t.Errorf("%+v, want descriptor %d of connection %d", got, number, conn)
	}
	unix.Close(number)
	if errno := c.Return(n.ID, number); errno != unix.ENOENT {
		t.Errorf("a second answer: %v", errno)
	}
}

// TestReplaceSocket: the caller's descriptor is another socket afterwards, with the flags that we say.
func TestReplaceSocket(t *testing.T) {
	c := filter(t, Bind)
	fd, other := tcp(t), tcp(t)
	n, result := c.begin(func() (int, error) { return 0, unix.Bind(fd, loopback) })
	if errno, lost := c.ReplaceSocket(n.ID, n.Caller(), other, false); errno != 0 || lost != nil {
		t.Errorf("%v, %v", errno, lost)
	}
	c.Answer(n.ID, 0)
	if got := fdtest.Receive(t, "bind", result); got.err != nil {
		t.Error(got.err)
	}
	if fdtest.Inode(t, fd) != fdtest.Inode(t, other) {
		t.Error("it is the same socket")
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("flags %o, %v", flags, err)
	}
}

// TestNextEnds: by its deadline, which does not last, and by Close. Calls that wait fail then, and so do
// later ones.
func TestNextEnds(t *testing.T) {
	c := filter(t, Bind)
	var n Notification
	c.SetDeadline(time.Unix(1, 0))
	if err := c.Next(&n); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	fd := tcp(t)
	_, result := c.begin(func() (int, error) { return 0, unix.Bind(fd, loopback) })
	c.SetDeadline(time.Time{})
	ended := make(chan error, 1)
	go func() {
		var n Notification
		err := c.Next(&n)
		for errors.Is(err, os.ErrDeadlineExceeded) {
			err = c.Next(&n)
		}
		ended <- err
	}()
	c.Close()
	if err := fdtest.Receive(t, "end of Next", ended); err == nil {
		t.Error("a notification after Close")
	}
	if got := fdtest.Receive(t, "end of bind", result); got.err != unix.ENOSYS {
		t.Errorf("a call that waited: %v", got.err)
	}
	if c.StillValid(1) {
		t.Error("a call waits although Close was called")
	}
}

// TestNextWithoutUsers: it fails when no thread has the filter any more.
func TestNextWithoutUsers(t *testing.T) {
	c := filter(t, Bind)
	c.does <- runtime.Goexit // a locked thread ends with its goroutine
	var n Notification
	err := c.Next(&n)
	for end := time.Now().Add(fdtest.Patience); errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end); {
		err = c.Next(&n)
	}
	if !errors.Is(err, unix.ENOTCONN) {
		t.Error(err)
	}
}
