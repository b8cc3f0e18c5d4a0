package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// ErrInUse: a living process listens there. The error that wraps it says which.
var ErrInUse = errors.New("is in use")

const (
	// maxPath is the longest path of a socket: that of sockaddr_un (man 7 unix), less what
	// its first name adds.
	maxPath = 107 - len(".") - len(".4194304")
	// lockTime is how long to wait for others who are about to listen in the same directory.
	lockTime = 5 * time.Second
	backlog  = 16
)

// Listen listens at an address. A Unix socket can be opened by this user and root only, from
// the start, whatever the umask is; one that a dead process has left is replaced, and that of
// a living one is ErrInUse. Closing the listener removes it. "0.0.0.0:80" is all of IPv4 and
// "[::]:80" all of IPv6.
func Listen(ctx context.Context, a Address) (net.Listener, error) {
	if a.Network == "unix" {
		return listenUnix(a.Address)
	}
	var config net.ListenConfig
	ln, err := config.Listen(ctx, fdpass.ListenNetwork(a.Address), a.Address)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	return ln, nil
}

// Try tells whether Listen can make a socket. It makes nothing. Of a TCP address it tells nothing.
func Try(a Address) error {
	if a.Network != "unix" {
		return nil
	}
	path, err := absolute(a.Address)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if a == ByName(strings.TrimSuffix(filepath.Base(path), suffix)) {
		err := checkPrivate(dir)
		if errors.Is(err, fs.ErrNotExist) { // which is made
			dir = filepath.Dir(dir)
		} else if err != nil {
			return err
		}
	}
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("admin: %s: %w", dir, os.NewSyscallError("access", err))
	}
	return checkFree(path)
}

func absolute(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("admin: %w", err)
	}
	if len(path) > maxPath {
		return "", fmt.Errorf("admin: %s: the path of a socket may have %d bytes, not %d", path, maxPath, len(path))
	}
	return path, nil
}

// unixListener is a listener whose socket is removed when it is closed.
type unixListener struct {
	net.Listener
	path   string
	self   os.FileInfo
	remove sync.Once
}

// Addr is where clients connect. The socket itself knows its first name only.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// SyscallConn gives access to the socket.
func (l *unixListener) SyscallConn() (syscall.RawConn, error) {
	return l.Listener.(*net.UnixListener).SyscallConn()
}

// Adopt returns a listener for a socket that Listen opened at an address in the program before. It
// takes ownership of file. Without remove, closing it does not remove the socket's name.
func Adopt(file *os.File, a Address, remove bool) (net.Listener, error) {
	defer file.Close() // the listener is a duplicate
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("admin: %s: %w", a, err)
	}
	if a.Network != "unix" {
		return ln, nil
	}
	adopted := &unixListener{Listener: ln, path: a.Address}
	if remove {
		adopted.self, _ = os.Lstat(a.Address)
	}
	return adopted, nil
}

func (l *unixListener) Close() error {
	l.remove.Do(func() {
		if l.self == nil {
			return
		}
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.self) {
			os.Remove(l.path)
		}
	})
	return l.Listener.Close()
}

func listenUnix(path string) (net.Listener, error) {
	path, err := absolute(path)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := checkFree(path); err != nil {
		return nil, err
	}
	// It gets its name when it listens: until then nobody finds it. And its mode is what the
	// socket's inode has before bind (unix_bind), less the umask.
	first := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+strconv.Itoa(os.Getpid()))
	os.Remove(first) // of an earlier process of this number
	ln, err := bindPrivate(first)
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
		return nil, fmt.Errorf("admin: %w", err)
	}
	return &unixListener{Listener: ln, path: path, self: self}, nil
}

func bindPrivate(path string) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", os.NewSyscallError("socket", err))
	}
	file := os.NewFile(uintptr(fd), "admin socket")
	defer file.Close() // the listener is a duplicate
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, fmt.Errorf("admin: %w", os.NewSyscallError("fchmod", err))
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("admin: %s: %w", path, os.NewSyscallError("bind", err))
	}
	err = os.NewSyscallError("listen", unix.Listen(fd, backlog))
	if info, statErr := os.Lstat(path); err == nil && (statErr != nil || info.Mode().Perm()&^0o600 != 0) {
		err = fmt.Errorf("mode %v, %w", info, errors.Join(statErr, fs.ErrPermission))
	}
	var ln net.Listener
	if err == nil {
		ln, err = net.FileListener(file)
	}
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("admin: %s: %w", path, err)
	}
	return ln, nil
}

// lock keeps other masters from listening in a directory, so that none takes another's socket for
// one that was left behind.
func lock(dir string) (unlock func(), err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
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
			return nil, fmt.Errorf("admin: %s: %w: another process holds it", dir, os.NewSyscallError("flock", err))
		}
	}
}

// otherwise is what to do about a socket that is in use.
const otherwise = "stop that, or give this one another --name or --admin; --admin off is none, and then status, reload and the like cannot ask it"

// checkOurs refuses root a directory in which somebody else could put another file, or a link to another
// directory, where root's socket is: root would make, rename and remove files there. In one for all, such as /tmp,
// nobody can touch what is another's (the sticky bit).
func checkOurs(dir *os.File) error {
	info, err := dir.Stat()
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	shared := info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0
	if os.Geteuid() != 0 || owner == 0 && !shared {
		return nil
	}
	return fmt.Errorf("admin: %s belongs to user %d (mode %#o), so that others could put something else in the socket's place; choose another --admin, such as %s, or have it belong to root", dir.Name(), owner, info.Mode().Perm(), filepath.Join(systemDirectory, DefaultName+suffix))
}

// checkFree tells whether a socket may be made at a path: nothing is there, or the socket of a
// process that is dead.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("admin: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("admin: %s is there and is no socket; choose another path, or remove it", path)
	}
	conn, err := net.DialTimeout("unix", path, lockTime)
	switch {
	case err == nil:
		defer conn.Close()
		return fmt.Errorf("admin: %s %w by pid %d; "+otherwise, path, ErrInUse, peerPID(conn))
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	case errors.Is(err, syscall.EAGAIN): // its backlog is full
		return fmt.Errorf("admin: %s %w by a process that does not answer; "+otherwise, path, ErrInUse)
	default:
		return fmt.Errorf("admin: %w", err)
	}
}

// peerPID returns the process that listens at the other end of a Unix socket, as it is numbered
// here; 0 if it is not.
func peerPID(conn net.Conn) int {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
