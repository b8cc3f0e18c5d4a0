package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestRights: the file has its mode and group when it has its name, whatever the umask is.
func TestRights(t *testing.T) {
	fdtest.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	groups, err := os.Getgroups()
	fdtest.Check(t, err)
	group := os.Getgid()
	if os.Geteuid() == 0 {
		group = 12345
	} else if len(groups) > 0 {
		group = groups[len(groups)-1]
	}
	defer syscall.Umask(syscall.Umask(0o077))
	for _, mode := range []fs.FileMode{0o600, 0o660, 0o666, 0o777} {
		ln, err := Listen(path, Options{Mode: mode, Group: group, Backlog: 8})
		fdtest.Check(t, err)
		info, err := os.Lstat(path)
		fdtest.Check(t, err)
		if info.Mode() != fs.ModeSocket|mode || int(info.Sys().(*syscall.Stat_t).Gid) != group {
			t.Errorf("%v, group %d; want %v, %d", info.Mode(), info.Sys().(*syscall.Stat_t).Gid, mode, group)
		}
		fdtest.Check(t, ln.Close())
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestReplace: the socket of a dead process is replaced, that of a living one and a file are not, and what is there by the end that is
// another's stays.
func TestReplace(t *testing.T) {
	fdtest.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	o := Options{Mode: 0o600, Backlog: 8}
	dead, err := Listen(path, o)
	fdtest.Check(t, err)
	fdtest.Check(t, dead.UnixListener.Close()) // as if it was killed
	living, err := Listen(path, o)
	fdtest.Check(t, err)
	defer living.Close()
	if _, err := Listen(path, o); !errors.Is(err, ErrInUse) {
		t.Errorf("the living one: %v", err)
	}
	dead.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the dead one has removed its successor's: %v", err)
	}

	file := filepath.Join(filepath.Dir(path), "file")
	fdtest.Check(t, os.WriteFile(file, []byte("x"), 0o600))
	if _, err := Listen(file, o); err == nil {
		t.Error("a file was replaced")
	}
	if b, err := os.ReadFile(file); string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestAdopt: a socket goes on under its path, and is removed by whose it is alone.
func TestAdopt(t *testing.T) {
	fdtest.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	first, err := Listen(path, Options{Mode: 0o600, Backlog: 8})
	fdtest.Check(t, err)
	for _, remove := range []bool{false, true} {
		file, err := first.File()
		fdtest.Check(t, err)
		ln, err := Adopt(file, path, remove)
		fdtest.Check(t, err)
		if ln.Addr().String() != path || ln.Name().IsOurs() != remove {
			t.Errorf("%v, ours: %v", ln.Addr(), ln.Name().IsOurs())
		}
		conn, err := net.Dial("unix", path)
		fdtest.Check(t, err)
		conn.Close()
		fdtest.Check(t, ln.Close())
		if _, err := os.Lstat(path); (err == nil) == remove {
			t.Errorf("remove %v: %v", remove, err)
		}
	}
	fdtest.Check(t, first.UnixListener.Close())
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	fdtest.Check(t, err)
	defer tcp.Close()
	file, err := tcp.(*net.TCPListener).File()
	fdtest.Check(t, err)
	if ln, err := Adopt(file, path, true); err == nil {
		t.Error(fmt.Sprint("a TCP listener: ", ln))
	}
}
