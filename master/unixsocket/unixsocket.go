// Package unixsocket makes Unix sockets that listen at a path: with their rights from the start, in the place of one that a dead
// process has left but of none that is alive, and removed when they are closed.
package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrInUse: a living process listens there. The error that wraps it says which.
	ErrInUse = errors.New("is in use")
	// ErrNotOurs: others than root can change the directory, and root would make, rename and remove files there.
	ErrNotOurs = errors.New("so that others could put something else in the socket's place")
)

const (
	// MaxPath is the longest path of a socket: that of sockaddr_un (man 7 unix), less what
	// its first name adds.
	MaxPath = 107 - len(".") - len(".4194304")
	// lockTime is how long to wait for others who are about to listen in the same directory.
	lockTime = 5 * time.Second
)

// Options say more about a socket that is made.
type Options struct {
	Mode    fs.FileMode // of the file: who may write to it may connect, whatever the umask is
	Group   int         // that the file belongs to; 0: this process's
	Backlog int         // connections that may wait to be accepted; the kernel's limit is net.core.somaxconn
}

// Listener is a listener whose socket is removed when it is closed.
type Listener struct {
	*net.UnixListener
	name *Name
}

// Name is the name of a socket that this process has made, or of another's, which stays.
type Name struct {
	path   string
	self   os.FileInfo // nil: it is not ours to be removed
	remove sync.Once
}

// Path is where clients connect. The socket itself knows its first name only.
func (n *Name) Path() string { return n.path }

// IsOurs tells whether Remove removes it.
func (n *Name) IsOurs() bool { return n.self != nil }

// Remove removes it, unless something else is there by now. From then on nobody connects.
func (n *Name) Remove() {
	n.remove.Do(func() {
		if n.self == nil {
			return
		}
		if now, err := os.Lstat(n.path); err == nil && os.SameFile(now, n.self) {
			os.Remove(n.path)
		}
	})
}

// Addr is where clients connect.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.name.path, Net: "unix"} }

// Name is what Close removes. A caller that keeps the socket by a duplicate takes it, and closes l's UnixListener alone.
func (l *Listener) Name() *Name { return l.name }

// Close removes the socket's name and closes it.
func (l *Listener) Close() error {
	l.name.Remove()
	return l.UnixListener.Close()
}

// Adopt takes ownership of a socket that listens at a path. Without remove, closing it does not remove the name.
func Adopt(file *os.File, path string, remove bool) (*Listener, error) {
	defer file.Close() // the listener is a duplicate
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("unixsocket: %s: %w", path, err)
	}
	socket, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("unixsocket: %s: it is no Unix socket", path)
	}
	name := &Name{path: path}
	if remove {
		name.self, _ = os.Lstat(path)
	}
	return &Listener{socket, name}, nil
}

// Listen makes a socket. One that a dead process has left is replaced, and that of a living one is ErrInUse.
func Listen(path string, o Options) (*Listener, error) {
	path, err := Absolute(path)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := CheckFree(path); err != nil {
		return nil, err
	}
	// It gets its name when it listens and has its rights: until then nobody finds it.
	first := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+strconv.Itoa(os.Getpid()))
	os.Remove(first) // of an earlier process of this number
	ln, err := bind(first, o)
	if err != nil {
		return nil, err
	}
	self, err := os.Lstat(first)
	if err == nil {
		err = os.Rename(first, path)
	}
	if err != nil {
		os.Remove(first)
		ln.Close()
		return nil, fmt.Errorf("unixsocket: %w", err)
	}
	return &Listener{ln, &Name{path: path, self: self}}, nil
}

// Try tells whether Listen can make a socket. It makes nothing.
func Try(path string) error {
	path, err := Absolute(path)
	if err != nil {
		return err
	}
	return TryIn(filepath.Dir(path), path)
}

// TryIn is Try of an absolute path whose nearest directory that is there is dir.
func TryIn(dir, path string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("unixsocket: %s: %w", dir, os.NewSyscallError("access", err))
	}
	return CheckFree(path)
}

// Absolute returns a path that does not depend on the working directory, and can be a socket's.
func Absolute(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("unixsocket: %w", err)
	}
	if len(path) > MaxPath {
		return "", fmt.Errorf("unixsocket: %s: the path of a socket may have %d bytes, not %d", path, MaxPath, len(path))
	}
	return path, nil
}

// bind makes a socket that listens, without a name to be removed. Its mode is what the socket's inode has before bind (unix_bind),
// less the umask, until it has its group.
func bind(path string, o Options) (*net.UnixListener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("unixsocket: %w", os.NewSyscallError("socket", err))
	}
	file := os.NewFile(uintptr(fd), "Unix socket")
	defer file.Close() // the listener is a duplicate
	const private = 0o600
	if err := unix.Fchmod(fd, private); err != nil {
		return nil, fmt.Errorf("unixsocket: %w", os.NewSyscallError("fchmod", err))
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("unixsocket: %s: %w", path, os.NewSyscallError("bind", err))
	}
	err = os.NewSyscallError("listen", unix.Listen(fd, o.Backlog))
	if info, statErr := os.Lstat(path); err == nil && (statErr != nil || info.Mode().Perm()&^private != 0) {
		err = fmt.Errorf("mode %v, %w", info, errors.Join(statErr, fs.ErrPermission))
	}
	if err == nil && o.Group != 0 {
		err = os.Lchown(path, -1, o.Group)
	}
	if err == nil && o.Mode != private {
		err = os.Chmod(path, o.Mode)
	}
	var ln net.Listener
	if err == nil {
		ln, err = net.FileListener(file)
	}
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("unixsocket: %s: %w", path, err)
	}
	return ln.(*net.UnixListener), nil
}

// lock keeps other masters from listening in a directory, so that none takes another's socket for
// one that was left behind.
func lock(dir string) (unlock func(), err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("unixsocket: %w", err)
	}
	if err := checkOurs(file); err != nil {
		file.Close()
		return nil, err
	}
	for deadline := time.Now().Add(lockTime); ; time.Sleep(10 * time.Millisecond) {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if time.Now().After(deadline) {
			file.Close()
			return nil, fmt.Errorf("unixsocket: %s: %w: another process holds it", dir, os.NewSyscallError("flock", err))
		}
	}
}

// checkOurs refuses root a directory in which somebody else could put another file, or a link to another
// directory, where root's socket is: root would make, rename and remove files there. In one for all, such as /tmp,
// nobody can touch what is another's (the sticky bit).
func checkOurs(dir *os.File) error {
	info, err := dir.Stat()
	if err != nil {
		return fmt.Errorf("unixsocket: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	shared := info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0
	if os.Geteuid() != 0 || owner == 0 && !shared {
		return nil
	}
	return fmt.Errorf("unixsocket: %s belongs to user %d (mode %#o), %w; choose another directory, or have it belong to root", dir.Name(), owner, info.Mode().Perm(), ErrNotOurs)
}

// CheckFree tells whether a socket may be made at a path: nothing is there, or the socket of a
// process that is dead.
func CheckFree(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("unixsocket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("unixsocket: %s is there and is no socket; choose another path, or remove it", path)
	}
	conn, err := net.DialTimeout("unix", path, lockTime)
	switch {
	case err == nil:
		defer conn.Close()
		pid, _ := Peer(conn)
		return fmt.Errorf("unixsocket: %s %w by pid %d", path, ErrInUse, pid)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	case errors.Is(err, syscall.EAGAIN): // its backlog is full
		return fmt.Errorf("unixsocket: %s %w by a process that does not answer", path, ErrInUse)
	default:
		return fmt.Errorf("unixsocket: %w", err)
	}
}

// Peer returns the process that listens at the other end of a Unix socket, as it is numbered here, 0 if it is not, and its user, -1 if
// that is not known.
func Peer(conn net.Conn) (pid, uid int) {
	pid, uid = 0, -1
	c, ok := conn.(syscall.Conn)
	if !ok {
		return pid, uid
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return pid, uid
	}
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid, uid = int(cred.Pid), int(cred.Uid)
		}
	})
	return pid, uid
}
