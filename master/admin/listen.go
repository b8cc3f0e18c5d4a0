package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/unixsocket"
)

// ErrInUse: a living process listens there. The error that wraps it says which.
var ErrInUse = unixsocket.ErrInUse

// backlog is that of a Unix socket.
const backlog = 16

// Listen listens at an address. A Unix socket can be opened by this user and root only, from
// the start, whatever the umask is; one that a dead process has left is replaced, and that of
// a living one is ErrInUse. Closing the listener removes it. "0.0.0.0:80" is all of IPv4 and
// "[::]:80" all of IPv6.
func Listen(ctx context.Context, a Address) (net.Listener, error) {
	if a.Network == "unix" {
		ln, err := unixsocket.Listen(a.Address, unixsocket.Options{Mode: 0o600, Backlog: backlog})
		if err != nil {
			return nil, remedied(err)
		}
		return ln, nil
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
	path, err := unixsocket.Absolute(a.Address)
	if err != nil {
		return remedied(err)
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
	return remedied(unixsocket.TryIn(dir, path))
}

// Adopt returns a listener for a socket that Listen opened at an address in the program before. It
// takes ownership of file. Without remove, closing it does not remove the socket's name.
func Adopt(file *os.File, a Address, remove bool) (net.Listener, error) {
	if a.Network == "unix" {
		ln, err := unixsocket.Adopt(file, a.Address, remove)
		if err != nil {
			return nil, remedied(err)
		}
		return ln, nil
	}
	defer file.Close() // the listener is a duplicate
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("admin: %s: %w", a, err)
	}
	return ln, nil
}

// remedied is an error with what to do about it.
func remedied(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unixsocket.ErrInUse):
		return fmt.Errorf("admin: %w; stop that, or give this one another --name or --admin; --admin off is none, and then status, reload and the like cannot ask it", err)
	case errors.Is(err, unixsocket.ErrNotOurs):
		return fmt.Errorf("admin: %w, or another --admin, such as %s", err, filepath.Join(systemDirectory, DefaultName+suffix))
	}
	return fmt.Errorf("admin: %w", err)
}
