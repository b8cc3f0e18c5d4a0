package fdpass

import (
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// ListenConfig returns what a listener is opened with whose connections are to be
// like those that a master hands off: with the options of SetOptions, and without
// Multipath TCP, Go's default for listeners, which would make other sockets of them
// than their workers expect.
func ListenConfig() net.ListenConfig {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return SetOptions(raw) }}
	config.SetMultipathTCP(false)
	return config
}

// ListenNetwork returns the network, for package net, in which address means what it says:
// ":80" all addresses of both families, "0.0.0.0:80" all of IPv4 and "[::]:80" all of IPv6.
func ListenNetwork(address string) string {
	ap, err := netip.ParseAddrPort(address)
	switch {
	case err != nil || !ap.Addr().IsUnspecified():
		return "tcp"
	case ap.Addr().Is4():
		return "tcp4"
	default:
		return "tcp6"
	}
}

// SetOptions sets on a listener, which it borrows, what its connections inherit
// (man 7 tcp): TCP_NODELAY and keep-alive, as package net sets them on each of its own.
func SetOptions(listener syscall.RawConn) error {
	return sock.ControlRaw(listener, func(fd int) error {
		for _, o := range []struct{ level, option, value int }{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		} {
			if err := unix.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		return nil
	})
}

// SetFreebind lets a socket be bound to an address that this machine does not have yet (man 7 ip,
// IP_FREEBIND; the kernel has one flag for both families).
func SetFreebind(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1))
}
