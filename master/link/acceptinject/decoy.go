package acceptinject

import (
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

const (
	// decoyBacklog is the size of a decoy's backlog: there are fewer wake-ups.
	decoyBacklog = 2 * maxQueue
	// nudgeInterval is how long accept waits for a connection that somebody else has taken.
	nudgeInterval = 100 * time.Millisecond
)

// decoy is the listening socket that a server of the worker has in place of its own. It is bound to
// a loopback address that nobody is told, so no client comes there, and the worker's calls of accept
// are answered by us. But the worker's pollers look at it. So for each connection that is queued for
// the worker, a connection of our own, a wake-up, waits in the decoy's backlog.
//
// All processes of the worker that have the socket share it with us, O_NONBLOCK included.
type decoy struct {
	fd      int // owned
	family  uint16
	inode   uint64
	at      unix.SockaddrInet4
	wakeups []int // our ends of them, owned, the oldest first
}

// openDecoy makes a decoy that looks like a socket of a family.
func openDecoy(family uint16) (*decoy, error) {
	fd, err := unix.Socket(int(family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a listener in the place of a worker's: %w", os.NewSyscallError("socket", err))
	}
	d := &decoy{fd: fd, family: family, at: unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}}
	if err := d.listen(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("opening a listener in the place of a worker's: %w", err)
	}
	return d, nil
}

func (d *decoy) listen() error {
	var local unix.Sockaddr = &d.at
	if d.family == unix.AF_INET6 { // ::1 may be missing where ::ffff:127.0.0.1 is not
		unix.SetsockoptInt(d.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
		local = &unix.SockaddrInet6{Addr: [16]byte{10: 0xff, 0xff, 127, 0, 0, 1}}
	}
	// Accepted connections inherit it: a wake-up that we close leaves no TIME_WAIT.
	unix.SetsockoptLinger(d.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
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
	d.at.Port = int(at.Port())
	d.inode, err = sock.InodeFD(d.fd)
	return err
}

// close closes the decoy and its wake-ups.
func (d *decoy) close() {
	d.closeWakeups(len(d.wakeups))
	unix.Close(d.fd)
}

// blocks tells whether accept is to wait.
func (d *decoy) blocks() bool {
	flags, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK == 0
}

// wakeup adds a wake-up, without waiting. It fails for want of ports, or of descriptors below the
// ceiling (package fdlimit).
func (d *decoy) wakeup(ceiling int) bool {
	// The server may have set it, but we send nothing.
	unix.SetsockoptInt(d.fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 0)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	if fd >= ceiling {
		unix.Close(fd)
		return false
	}
	if err := unix.Connect(fd, &d.at); err != nil && err != unix.EINPROGRESS && err != unix.EINTR {
		unix.Close(fd)
		return false
	}
	d.wakeups = append(d.wakeups, fd)
	return true
}

// cancelWakeup takes a wake-up back, and tells whether there was one. A wake-up that is still under
// way is not found: it will wake a thread in vain, whose call of accept takes it back (clear).
func (d *decoy) cancelWakeup() bool {
	if !d.acceptOne() {
		return false
	}
	d.closeWakeups(min(1, len(d.wakeups)))
	return true
}

// clear empties the backlog, also of what strangers have left there, and tells whether it had
// something.
func (d *decoy) clear() (some bool) {
	for d.acceptOne() {
		some = true
	}
	d.closeWakeups(len(d.wakeups))
	return some
}

// closeWakeups closes our ends of the n oldest wake-ups.
func (d *decoy) closeWakeups(n int) {
	for _, fd := range d.wakeups[:n] {
		unix.Close(fd)
	}
	d.wakeups = append(d.wakeups[:0], d.wakeups[n:]...)
}

// acceptOne accepts a connection from the backlog and closes it, if there is one.
func (d *decoy) acceptOne() bool {
	poll := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
	if unix.Poll(poll, 0); poll[0].Revents&unix.POLLIN == 0 {
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
	accepted, nudged := make(chan struct{}), make(chan struct{})
	late := time.AfterFunc(nudgeInterval, func() {
		defer close(nudged)
		for {
			d.nudge()
			select {
			case <-accepted:
				return
			case <-time.After(nudgeInterval):
			}
		}
	})
	fd, _, err = unix.Accept4(d.fd, unix.SOCK_CLOEXEC)
	close(accepted)
	if !late.Stop() {
		<-nudged
	}
	return fd, err
}

// nudge connects, sends a byte, without which TCP_DEFER_ACCEPT would hide the connection, and closes.
func (d *decoy) nudge() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// Not &d.at: Connect writes into it, and wakeup may run meanwhile.
	at := &unix.SockaddrInet4{Port: d.at.Port, Addr: d.at.Addr}
	if err := unix.Connect(fd, at); err == nil || err == unix.EINPROGRESS {
		unix.SendmsgN(fd, []byte{0}, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
}

// wakeup sees to it that there are wake-ups for all queued connections but those that calls wait for.
// mu is held.
func (l *Link) wakeup() {
	n := min(len(l.queue)-len(l.waiting), maxQueue)
	for have := l.wakeups(); have < n && len(l.decoys) > 0; have++ {
		ceiling := l.ceiling
		if have == 0 {
			ceiling = math.MaxInt // or the worker would never accept, and give descriptors back
		}
		l.lastWoken = (l.lastWoken + 1) % len(l.decoys)
		if !l.decoys[l.lastWoken].wakeup(ceiling) {
			return // again at the next tick
		}
	}
}

// cancelWakeups takes back wake-ups for which no connection is queued, first those of one decoy. mu is
// held.
func (l *Link) cancelWakeups(first *decoy) {
	surplus := l.wakeups() - len(l.queue)
	for surplus > 0 && first.cancelWakeup() {
		surplus--
	}
	for _, d := range l.decoys {
		for d != first && surplus > 0 && d.cancelWakeup() {
			surplus--
		}
	}
}

// wakeups counts them. mu is held.
func (l *Link) wakeups() (n int) {
	for _, d := range l.decoys {
		n += len(d.wakeups)
	}
	return n
}
