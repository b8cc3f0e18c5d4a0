package acceptinject

import (
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

const (
	// decoyBacklog is the size of a decoy's backlog, where our wake-up has to find room beside what strangers leave there.
	decoyBacklog = 256
	// nudgeInterval is how long accept waits for a connection that somebody else has taken.
	nudgeInterval = 100 * time.Millisecond
)

// decoy is the listening socket that a server of the worker has in place of its own. It is bound to
// a loopback address that nobody is told, so no client comes there, and the worker's calls of accept
// are answered by us. But the worker's pollers look at it. So while connections are queued for
// the worker, a connection of our own, a wake-up, waits in the decoy's backlog.
//
// All processes of the worker that have the socket share it with us, O_NONBLOCK included.
//
// Its calls that do not wait are raw: ordinary ones wake the runtime's monitor thread.
type decoy struct {
	fd     int // owned
	family uint16
	inode  uint64
	at     unix.RawSockaddrInet4
	waker  int  // owned: its connections to the decoy are the wake-ups
	woken  bool // the waker is connected, or about to be
	drains bool // a call of accept that nobody had announced anything to has found nothing: see cancelWakeups
	watch  watch
}

// openDecoy makes a decoy that looks like a socket of a family.
func openDecoy(family uint16) (*decoy, error) {
	d := &decoy{fd: -1, waker: -1, family: family, at: unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte{127, 0, 0, 1}}}
	d.watch.nudge = d.nudge
	if err := d.open(); err != nil {
		d.close()
		return nil, fmt.Errorf("opening a listener in the place of a worker's: %w", err)
	}
	return d, nil
}

func (d *decoy) open() (err error) {
	if d.fd, err = unix.Socket(int(d.family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	if d.waker, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	var local unix.Sockaddr = &unix.SockaddrInet4{Addr: d.at.Addr}
	if d.family == unix.AF_INET6 { // ::1 may be missing where ::ffff:127.0.0.1 is not
		unix.SetsockoptInt(d.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
		local = &unix.SockaddrInet6{Addr: [16]byte{10: 0xff, 0xff, 127, 0, 0, 1}}
	}
	if err := unix.Bind(d.fd, local); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(d.fd, decoyBacklog); err != nil {
		return os.NewSyscallError("listen", err)
	}
	at, err := sock.Local(d.fd)
	if err != nil {
		return err
	}
	*(*[2]byte)(unsafe.Pointer(&d.at.Port)) = [2]byte{byte(at.Port() >> 8), byte(at.Port())}
	d.inode, err = sock.InodeFD(d.fd)
	return err
}

// close closes the decoy and ends its wake-up.
func (d *decoy) close() {
	unix.Close(d.waker)
	unix.Close(d.fd)
}

// blocks tells whether accept is to wait.
func (d *decoy) blocks() bool {
	flags, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(d.fd), unix.F_GETFL, 0)
	return errno == 0 && flags&unix.O_NONBLOCK == 0
}

// wake adds a wake-up, without waiting, unless there is one. It fails for want of ports.
func (d *decoy) wake() bool {
	if d.woken {
		return true
	}
	// The server may have set it, but we send nothing.
	var never int32
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(d.fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, uintptr(unsafe.Pointer(&never)), unsafe.Sizeof(never), 0)
	switch d.connect(d.waker, unix.AF_INET) {
	case 0, unix.EINPROGRESS, unix.EINTR:
		d.woken = true
	}
	return d.woken
}

// disconnect ends a wake-up (man 2 connect). What is in the backlog stays there.
func (d *decoy) disconnect() {
	if d.woken {
		d.connect(d.waker, unix.AF_UNSPEC)
		d.woken = false
	}
}

func (d *decoy) connect(fd int, family uint16) unix.Errno {
	at := d.at
	at.Family = family
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&at)), unsafe.Sizeof(at))
	return errno
}

// wakeAnew adds another wake-up than the one that there is, which stays in the backlog, as one that nobody waits for.
func (d *decoy) wakeAnew() {
	d.disconnect()
	d.wake()
}

// clear empties the backlog, also of what strangers have left there, and tells whether it had
// something. A wake-up that is still under way ends where it is, or wakes a thread in vain.
func (d *decoy) clear() (some bool) {
	d.disconnect() // first: then what we accept is closed already, and leaves no TIME_WAIT
	for d.acceptOne() {
		some = true
	}
	return some
}

// acceptOne accepts a connection from the backlog and closes it, if there is one.
func (d *decoy) acceptOne() bool {
	poll, none := unix.PollFd{Fd: int32(d.fd), Events: unix.POLLIN}, unix.Timespec{}
	unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&none)), 0, 0, 0)
	if poll.Revents&unix.POLLIN == 0 {
		return false
	}
	fd, err := d.accept()
	if err != nil {
		return false
	}
	fdpass.CloseConnections(fd) // it has inherited what the worker has set on its socket
	return true
}

// accept accepts a connection that poll has announced. The socket may be a blocking one, and the worker
// may have passed it to a process that has no filter and that was faster: then this would wait for the
// next connection, with all locks held. So after a while we connect ourselves, again and again.
func (d *decoy) accept() (fd int, err error) {
	d.watch.begin()
	defer d.watch.end()
	got, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(d.fd), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(got), nil
}

// nudge connects, sends a byte, without which TCP_DEFER_ACCEPT would hide the connection, and closes.
func (d *decoy) nudge() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if errno := d.connect(fd, unix.AF_INET); errno == 0 || errno == unix.EINPROGRESS {
		unix.SendmsgN(fd, []byte{0}, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
}

// watch calls nudge when what is between begin and end takes nudgeInterval, and after each other one. Its timer goes on for
// a while after the end: one that is started and stopped for each connection would cost more than the connection.
type watch struct {
	nudge func()

	mu    sync.Mutex
	since time.Time   // of begin; zero after end
	timer *time.Timer // nil: none runs
}

func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
	if w.timer == nil {
		w.timer = time.AfterFunc(nudgeInterval, w.look)
	}
}

// end waits for a nudge that is under way.
func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Time{}
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since.IsZero() {
		w.timer = nil
		return
	}
	if time.Since(w.since) >= nudgeInterval {
		w.nudge()
	}
	w.timer.Reset(nudgeInterval)
}

// wakeup sees to it that there are wake-ups for queued connections but those that calls wait for: one for each, up to
// one for each decoy. mu is held.
//
// One is enough, however many connections follow: a server that waits for readiness is told of it as long as it is there,
// and one that waits for a change (EPOLLET) accepts until it is told that there are no more (EAGAIN).
func (l *Link) wakeup() {
	for _, family := range l.families() {
		n, woken := l.decoysFor(family)
		if !l.wakeSome(family, min(l.queuedFor(family)-l.waitingFor(family), n)-woken) {
			return // again at the next tick
		}
	}
}

// wakeSome adds wake-ups to decoys that have none. It fails for want of ports. mu is held.
func (l *Link) wakeSome(family uint16, missing int) bool {
	for range l.decoys {
		if missing <= 0 {
			break
		}
		l.lastWoken = (l.lastWoken + 1) % len(l.decoys)
		d := l.decoys[l.lastWoken]
		if d.woken || !isOf(d.family, family) {
			continue
		}
		if !d.wake() {
			return false
		}
		missing--
	}
	return true
}

// cancelWakeups takes back wake-ups for which no connection is queued, before a call is answered at a decoy: as a connection
// leaves the backlog before accept returns. Else a server could see the wake-up once more, and wait in accept for a
// connection that never comes; it would not notice that it is to finish.
//
// But where accept does not wait, and is called until there are no more, as most servers do, they stay until that call: a
// handshake for each connection would cost more than all else. Others take a call that finds nothing for a
// fault, and Prosody then accepts nothing for ten seconds. mu is held.
func (l *Link) cancelWakeups(first *decoy) {
	family := l.familyAt(first)
	_, woken := l.decoysFor(family)
	surplus := woken - l.queuedFor(family)
	if surplus > 0 && first.isExact() {
		first.clear()
		surplus--
	}
	for _, d := range l.decoys {
		if surplus > 0 && d.isExact() && isOf(d.family, family) {
			d.clear()
			surplus--
		}
	}
}

// isExact tells whether a wake-up is there that must not outlast the connections.
func (d *decoy) isExact() bool { return d.woken && (!d.drains || d.blocks()) }
