package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// burgle tries what a worker of the master's user may, and one of another user must not, and writes what it could to
// standard error. HANDFAST_TEST_BURGLE is a directory that belongs to the master's user alone, HANDFAST_TEST_ADMIN
// its socket, HANDFAST_TEST_AT the address that it listens on.
func burgle() {
	master := os.Getppid()
	proc := fmt.Sprintf("/proc/%d/", master)
	dir := os.Getenv("HANDFAST_TEST_BURGLE")
	open := func(path string) error {
		file, err := os.Open(path)
		if err == nil {
			_, err = file.Read(make([]byte, 1))
			file.Close()
		}
		return err
	}
	for _, try := range []struct {
		what string
		do   func() error
	}{
		{"signals", func() error { return unix.Kill(master, 0) }},
		{"environment", func() error { return open(proc + "environ") }},
		{"memory", func() error {
			file, err := os.OpenFile(proc+"mem", os.O_RDWR, 0)
			if err == nil {
				file.Close()
			}
			return err
		}},
		{"descriptors", func() error {
			_, err := os.ReadDir(proc + "fd")
			return err
		}},
		{"a copy of one", func() error {
			pidfd, err := unix.PidfdOpen(master, 0)
			if err != nil {
				return err
			}
			defer unix.Close(pidfd)
			for fd := range 64 {
				var copied int
				if copied, err = unix.PidfdGetfd(pidfd, fd, 0); err == nil {
					return unix.Close(copied)
				}
			}
			return err
		}},
		{"admin socket", func() error {
			conn, err := net.Dial("unix", os.Getenv("HANDFAST_TEST_ADMIN"))
			if err == nil {
				conn.Close()
			}
			return err
		}},
		{"files", func() error { return os.WriteFile(filepath.Join(dir, "burgled"), nil, 0o600) }},
		{"low port", func() error {
			ln, err := net.Listen("tcp", "127.0.0.82:81")
			if err == nil {
				ln.Close()
			}
			return err
		}},
		{"others' clients", joinGroup}, // by the kernel's route
	} {
		if try.do() == nil {
			fmt.Fprintln(os.Stderr, "burgled:", try.what)
		}
	}
	fmt.Fprintln(os.Stderr, "burgles no more")
}

// joinGroup binds a listener beside the slots', of which the kernel would give it clients.
func joinGroup() error {
	at, err := netip.ParseAddrPort(os.Getenv("HANDFAST_TEST_AT"))
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	}
	if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
		return nil // another reason than the one that is wanted
	}
	return err
}
