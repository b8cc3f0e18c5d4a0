package reuseport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// backlog is the longest queue of a listener: the kernel cuts it to net.core.somaxconn.
const backlog = 1<<31 - 1

// listen opens a listener, of which the caller owns the file. prepare sees the socket before it
// is bound.
func listen(ctx context.Context, network, address, name string, prepare func(fd int) error) (*os.File, *net.TCPAddr, error) {
	config := fdpass.ListenConfig()
	options := config.Control
	config.Control = func(network, address string, raw syscall.RawConn) error {
		if err := options(network, address, raw); err != nil {
			return err
		}
		return sock.ControlRaw(raw, prepare)
	}
	ln, err := config.Listen(ctx, network, address)
	if err != nil {
		return nil, nil, inUse(fmt.Errorf("reuseport: %w", err))
	}
	defer ln.Close() // the file is a duplicate
	file, err := unpolled(ln.(*net.TCPListener), name)
	if err != nil {
		return nil, nil, fmt.Errorf("reuseport: %w", err)
	}
	return file, ln.Addr().(*net.TCPAddr), nil
}

// unpolled returns a file for the listener, non-blocking, that Go's poller does not watch and
// package os does not make blocking. The caller owns it.
func unpolled(ln *net.TCPListener, name string) (file *os.File, err error) {
	fd, err := sock.Duplicate(ln)
	if err != nil {
		return nil, err
	}
	// os.NewFile puts into the poller what it finds non-blocking.
	err = unix.SetNonblock(fd, false)
	file = os.NewFile(uintptr(fd), name)
	if err = errors.Join(err, unix.SetNonblock(fd, true)); err != nil {
		file.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return file, nil
}

// share lets other sockets of this user listen where this one does.
func share(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

// dropPackets makes a socket drop every packet that has come a hop or was sent with a usual number
// of them to go (64, 128), as if it were lost: clients try again after a second.
// A socket filter would do that without exception, but kernels may ask for a privilege.
func dropPackets(fd int) error { return setMinHops(fd, 255) }

// passPackets undoes dropPackets.
func passPackets(fd int) error { return setMinHops(fd, 0) }

// setMinHops sets IP_MINTTL (man 7 ip), and what is the same in IPv6.
func setMinHops(fd, hops int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, hops)
	}
	if err == nil && domain == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, hops)
	}
	return os.NewSyscallError("setsockopt", err)
}

// listenAgain undoes shutdown(2) of a listener, which has also undone a bind to port 0: then
// the socket is bound again, to where the others are.
func listenAgain(fd int, addr unix.Sockaddr) error {
	if err := unix.Bind(fd, addr); err != nil && err != unix.EINVAL { // EINVAL: it is bound
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

func tcpInfo(listener *os.File) (info *unix.TCPInfo, err error) {
	err = control(listener, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return os.NewSyscallError("getsockopt", err)
	})
	return info, err
}

// control calls f with the descriptor of a file, which stays open meanwhile.
func control(file *os.File, f func(fd int) error) error {
	if err := sock.Control(file, f); err != nil {
		return fmt.Errorf("reuseport: %w", err)
	}
	return nil
}
