package admin

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// DefaultName is that of a master which nobody has named.
const DefaultName = "handfast"

// suffix of the sockets in a runtime directory.
const suffix = ".sock"

// Address is where a master answers: a Unix socket's path or a TCP address.
type Address struct {
	Network string // unix or tcp
	Address string
}

func (a Address) String() string { return a.Address }

// ParseAddress reads PATH, with a slash in it, or HOST:PORT. Without a host it is a loopback address.
func ParseAddress(s string) (Address, error) {
	if strings.Contains(s, "/") {
		return Address{"unix", s}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		hint := ""
		if _, err := strconv.ParseUint(s, 10, 16); err == nil {
			hint = "; did you mean :" + s + "?"
		}
		return Address{}, fmt.Errorf("admin: %q is neither a path (with a / in it) nor HOST:PORT%s", s, hint)
	}
	return Address{"tcp", net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port)}, nil
}

// CheckName tells whether a master can be named so: its socket is.
func CheckName(name string) error {
	const most = 40
	if name == "" || name[0] == '.' || len(name) > most || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("admin: name %q: want 1 to %d bytes without a slash, and no dot first", name, most)
	}
	return nil
}

// ByName returns where a master of this name listens that is started by this user: as
// DefaultAddress, but nothing is made.
func ByName(name string) Address { return socketIn(directories()[0], name) }

// DefaultAddress returns where a master of this name listens, and makes the directory: the
// service manager's $RUNTIME_DIRECTORY, else /run/handfast for root, and for others a directory
// in $XDG_RUNTIME_DIR or for want of that in the one for temporary files.
func DefaultAddress(name string) (Address, error) {
	dir, err := Directory()
	if err != nil {
		return Address{}, err
	}
	return socketIn(dir, name), nil
}

// Directory returns the one for what lives as long as the machine runs: DefaultAddress says which. It makes it, and nobody else
// can put anything there.
func Directory() (string, error) {
	dir := directories()[0]
	return dir, makePrivate(dir)
}

// socketIn returns the address of a master in a runtime directory.
func socketIn(dir, name string) Address { return Address{"unix", filepath.Join(dir, name+suffix)} }

const systemDirectory = "/run/handfast"

// directories returns those where sockets are by default: first the one where this process
// would make one. Others are where those may be that were started otherwise: from another kind of
// session, or by another user.
func directories() (dirs []string) {
	if dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":"); dir != "" {
		return []string{dir} // of a service manager: what else runs is none of this service's business
	}
	if os.Geteuid() != 0 {
		if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
			dirs = append(dirs, filepath.Join(dir, "handfast"))
		}
		dirs = append(dirs, filepath.Join(os.TempDir(), fmt.Sprintf("handfast-%d", os.Geteuid())))
	}
	return append(dirs, systemDirectory)
}

// makePrivate makes a directory where nobody else can put anything, or checks that it is one.
func makePrivate(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("admin: %w", err)
	}
	return checkPrivate(dir)
}

// checkPrivate tells whether only this user, or root, can make something in a directory.
func checkPrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !info.IsDir():
		return fmt.Errorf("admin: %s is not a directory", dir)
	case owner != uint32(os.Geteuid()) && owner != 0:
		return fmt.Errorf("admin: %s belongs to user %d, who could put another socket there", dir, owner)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("admin: %s can be written by others (mode %#o), who could put another socket there", dir, info.Mode().Perm())
	}
	return nil
}
