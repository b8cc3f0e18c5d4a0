package nodeipc

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/asuser"
)

const (
	// ipv6Only is a flag of libuv (UV_TCP_IPV6ONLY).
	ipv6Only = 1
	// openTime is how long opening a worker's path may take: it may lead to a file system whose server is gone.
	openTime = time.Second
)

// socketName is what a Unix socket is called in the file system. It is kept as a directory that was opened
// when the socket was made, so that moving that, or putting a symbolic link in its place, leads
// nobody to another file of the same name.
type socketName struct {
	dir      *os.File // owned; nil: it has none
	base     string
	dev, ino uint64
}

// socketNameOf finds a socket's name, and the zero socketName if it has none, or no longer.
func socketNameOf(path string) (name socketName) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return name
	}
	name = socketName{dir: os.NewFile(uintptr(dir), "directory of "+path), base: filepath.Base(path)}
	var stat unix.Stat_t
	if unix.Fstatat(dir, name.base, &stat, unix.AT_SYMLINK_NOFOLLOW) != nil || stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		name.dir.Close()
		return socketName{}
	}
	name.dev, name.ino = uint64(stat.Dev), stat.Ino
	return name
}

// remove removes the name if it is still the socket's.
func (n *socketName) remove() {
	if n.dir == nil {
		return
	}
	defer n.dir.Close()
	sock.Control(n.dir, func(dir int) error {
		var stat unix.Stat_t
		if unix.Fstatat(dir, n.base, &stat, unix.AT_SYMLINK_NOFOLLOW) == nil && uint64(stat.Dev) == n.dev && stat.Ino == n.ino {
			unix.Unlinkat(dir, n.base, 0)
		}
		return nil
	})
}

// socket is what was opened for a worker.
type socket struct {
	file *os.File
	name socketName
}

// open opens what a worker wants to listen on, with the worker's rights; the caller owns it. It does not wait
// longer than openTime, and for a path not at all while another one is waited for.
func (p *Primary) open(q *query) (s socket, err error) {
	if q.kind() != "-1" {
		err = asuser.Do(p.cfg.User, func() (err error) {
			s.file, err = openPort(q)
			return err
		})
		return s, err
	}
	if p.stuck.Swap(true) {
		return s, unix.ETIMEDOUT
	}
	type result struct {
		socket
		error
	}
	opened, unwanted := make(chan result), make(chan struct{})
	go func() {
		var r result
		r.error = asuser.Do(p.cfg.User, func() (err error) {
			r.socket, err = openPath(q)
			return err
		})
		p.stuck.Store(false)
		select {
		case opened <- r:
		case <-unwanted:
			if r.error == nil {
				r.file.Close()
				p.remove(r.name)
			}
		}
	}()
	select {
	case r := <-opened:
		return r.socket, r.error
	case <-time.After(openTime):
		close(unwanted)
		return s, unix.ETIMEDOUT
	}
}

// remove removes names of sockets, with the worker's rights, and waits for that for openTime.
func (p *Primary) remove(names ...socketName) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		asuser.Do(p.cfg.User, func() error {
			for _, name := range names {
				name.remove()
			}
			return nil
		})
	}()
	select {
	case <-done:
	case <-time.After(openTime):
	}
}

// openPath listens on a path, or on an abstract name, which begins with a zero byte (man 7 unix).
func openPath(q *query) (s socket, err error) {
	if q.Address == nil || *q.Address == "" {
		return s, unix.EINVAL
	}
	path := *q.Address
	if strings.HasPrefix(path, "@") { // which package unix takes for that zero byte
		path = "./" + path
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return s, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return s, os.NewSyscallError("bind", err)
	}
	if path[0] != 0 {
		s.name = socketNameOf(path)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		unix.Close(fd)
		s.name.remove()
		return socket{}, os.NewSyscallError("listen", err)
	}
	// The file is not to be in Go's poller (os.NewFile), though it is non-blocking, as Node's event loop needs it.
	s.file = os.NewFile(uintptr(fd), path)
	return s, unix.SetNonblock(fd, true)
}

// openPort listens on a port, or receives datagrams there.
func openPort(q *query) (*os.File, error) {
	address := ""
	if q.Address != nil {
		address = *q.Address
	}
	// Node has resolved names. We do not: that could take long, and others wait.
	if _, err := netip.ParseAddr(address); err != nil && address != "" {
		return nil, unix.EINVAL
	}
	type filer interface {
		File() (*os.File, error)
		Close() error
	}
	var opened any
	var err error
	hostPort := net.JoinHostPort(address, itoa(q.Port))
	switch q.kind() {
	case "4", "6":
		network := "tcp"
		if q.Address != nil && (address != "::" || q.Flags&ipv6Only != 0) {
			network += q.kind()
		}
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		opened, err = config.Listen(context.Background(), network, hostPort)
	case "udp4", "udp6":
		opened, err = net.ListenPacket(q.kind(), hostPort)
	default:
		return nil, unix.EAFNOSUPPORT
	}
	if err != nil {
		return nil, err
	}
	socket := opened.(filer)
	defer socket.Close() // the file is a duplicate
	file, err := socket.File()
	if err != nil {
		return nil, err
	}
	// File has made it blocking, and Node's event loop needs it otherwise.
	if err := sock.Control(file, func(fd int) error { return unix.SetNonblock(fd, true) }); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
