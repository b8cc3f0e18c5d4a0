package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/unixsocket"
)

// firstListenFD is the first descriptor that a service manager passes
// (SD_LISTEN_FDS_START, man 3 sd_listen_fds).
const firstListenFD = 3

// Inherited returns the listeners that a service manager such as systemd opened
// for this process, none when there are none; the caller owns them. Call it once,
// before the process opens descriptors of its own.
func Inherited() ([]net.Listener, error) {
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if pid != os.Getpid() {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return nil, fmt.Errorf("systemd: LISTEN_FDS=%q: want a number of descriptors", os.Getenv("LISTEN_FDS"))
	}
	var lns []net.Listener
	for fd := firstListenFD; fd < firstListenFD+n; fd++ {
		ln, err := inherit(fd)
		if err != nil {
			for _, ln := range lns {
				ln.Close()
			}
			return nil, err
		}
		lns = append(lns, ln)
	}
	return lns, nil
}

func inherit(fd int) (net.Listener, error) {
	unix.CloseOnExec(fd)
	file := os.NewFile(uintptr(fd), "inherited listener")
	defer file.Close() // the listener is a duplicate
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("systemd: inherited descriptor %d: %w", fd, err)
	}
	switch socket := ln.(type) {
	case *net.TCPListener:
		return ln, nil
	case *net.UnixListener:
		defer ln.Close()
		if path := socket.Addr().String(); strings.HasPrefix(path, "/") && socket.Addr().Network() == "unix" {
			socket.SetUnlinkOnClose(false)
			return adopt(socket, path)
		}
	default:
		ln.Close()
	}
	return nil, fmt.Errorf("systemd: inherited descriptor %d is no listener that is known; use ListenStream= with a port, or a path", fd)
}

// adopt borrows a Unix socket, whose name is the manager's.
func adopt(socket *net.UnixListener, path string) (net.Listener, error) {
	file, err := socket.File()
	if err != nil {
		return nil, fmt.Errorf("systemd: %s: %w", path, err)
	}
	return unixsocket.Adopt(file, path, false)
}
