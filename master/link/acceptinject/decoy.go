package acceptinject

import (
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// doorBacklog is what a door's backlog holds: more than there are knocks.
const doorBacklog = 2 * maxQueue

// door is the listening socket that a server of the worker has in place of its own. It is bound to
// a loopback address that nobody is told, and no client comes there: the worker's calls of accept
// are answered by us. But its pollers look at it, so for each connection that waits for
// the worker one of our own, a knock, waits in the door's backlog.
//
// All processes of the worker that have the socket share it with us, also O_NONBLOCK.
type door struct {
	fd     int // owned
	family uint16
	inode  uint64
	at     unix.SockaddrInet4
	knocks []int // our ends, owned
}

// openDoor makes a door that looks like a socket of a family.
func openDoor(family uint16) (*door, error) {
	fd, err := unix.Socket(int(family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("acceptinject: %w", os.NewSyscallError("socket", err))
	}
	d := &door{fd: fd, family: family, at: unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}}
	if err := d.open(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("acceptinject: %w", err)
	}
	return d, nil
}

func (d *door) open() error {
	var local unix.Sockaddr = &d.at
	if d.family == unix.AF_INET6 { // ::1 may be missing where ::ffff:127.0.0.1 is not
		unix.SetsockoptInt(d.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
		local = &unix.SockaddrInet6{Addr: [16]byte{10: 0xff, 0xff, 127, 0, 0, 1}}
	}
	// What is accepted has it, too: a knock that we close leaves no TIME_WAIT.
	unix.SetsockoptLinger(d.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err := unix.Bind(d.fd, local); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(d.fd, doorBacklog); err != nil {
		return os.NewSyscallError("listen", err)
	}
	name, err := unix.Getsockname(d.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		d.at.Port = name.Port
	case *unix.SockaddrInet6:
		d.at.Port = name.Port
	}
	var stat unix.Stat_t
	if err := unix.Fstat(d.fd, &stat); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	d.inode = stat.Ino
	return nil
}

// close closes it and its knocks.
func (d *door) close() {
	d.forget(len(d.knocks))
	unix.Close(d.fd)
}

// blocks tells whether accept is to wait.
func (d *door) blocks() bool {
	flags, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK == 0
}

// knock adds a knock, without waiting. It fails for want of ports, or of descriptors below the
// ceiling (package fdlimit).
func (d *door) knock(ceiling int) bool {
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
	d.knocks = append(d.knocks, fd)
	return true
}

// unknock takes a knock back, and tells whether there was one. One that is still under way is
// not found: it will wake somebody in vain, who then takes it back (clear).
func (d *door) unknock() bool {
	if !d.take() {
		return false
	}
	d.forget(min(1, len(d.knocks)))
	return true
}

// clear takes back all that is there, also what strangers have left, and tells whether there was
// something.
func (d *door) clear() (some bool) {
	for d.take() {
		some = true
	}
	d.forget(len(d.knocks))
	return some
}

// take accepts a connection from the backlog and closes it, if there is one.
func (d *door) take() bool {
	poll := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
	if unix.Poll(poll, 0); poll[0].Revents&unix.POLLIN == 0 {
		return false
	}
	fd, err := d.accept()
	if err != nil {
		return false
	}
	fdpass.CloseConnections(fd) // what the worker sets on its socket this has, too
	return true
}

// accept accepts a connection that was there. The socket may be a blocking one, and a process that the worker has passed it to,
// and that has no filter, may be faster: then this would wait for the next one, with all locks held. So after a
// while we come ourselves, again and again.
func (d *door) accept() (fd int, err error) {
	done := make(chan struct{})
	defer close(done)
	defer time.AfterFunc(wakeTime, func() {
		for {
			d.come()
			select {
			case <-done:
				return
			case <-time.After(wakeTime):
			}
		}
	}).Stop()
	fd, _, err = unix.Accept4(d.fd, unix.SOCK_CLOEXEC)
	return fd, err
}

// wakeTime is how long accept waits for what is gone.
const wakeTime = 100 * time.Millisecond

// come connects, and leaves at once, with a byte for who waits for that (TCP_DEFER_ACCEPT).
func (d *door) come() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// Not &d.at, in which Connect writes: others knock meanwhile.
	at := &unix.SockaddrInet4{Port: d.at.Port, Addr: d.at.Addr}
	if err := unix.Connect(fd, at); err == nil || err == unix.EINPROGRESS {
		unix.SendmsgN(fd, []byte{0}, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
}

// forget closes our ends of the n oldest knocks.
func (d *door) forget(n int) {
	for _, fd := range d.knocks[:n] {
		unix.Close(fd)
	}
	d.knocks = append(d.knocks[:0], d.knocks[n:]...)
}

// knock sees to it that there are n knocks. mu is held.
func (l *Link) knock(n int) {
	n = min(n, maxQueue)
	for have := l.knocks(); have < n && len(l.doors) > 0; have++ {
		ceiling := l.ceiling
		if have == 0 {
			ceiling = math.MaxInt // or nobody would ever come, and give descriptors back
		}
		l.knocked = (l.knocked + 1) % len(l.doors)
		if !l.doors[l.knocked].knock(ceiling) {
			return // again at the next tick
		}
	}
}

// unknock takes back knocks for which no connection is queued, first from one door. mu is held.
func (l *Link) unknock(first *door) {
	surplus := l.knocks() - len(l.queue)
	for surplus > 0 && first.unknock() {
		surplus--
	}
	for _, d := range l.doors {
		for d != first && surplus > 0 && d.unknock() {
			surplus--
		}
	}
}

// knocks counts them. mu is held.
func (l *Link) knocks() (n int) {
	for _, d := range l.doors {
		n += len(d.knocks)
	}
	return n
}
