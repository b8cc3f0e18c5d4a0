package sock

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// loopback is the name that the kernel gives the loopback interface.
const loopback = "lo"

// BindToLoopback has a socket get only what comes in by the loopback interface: from this machine. If it is then bound to
// all addresses, those are all that lead there, of 127.0.0.0/8 and local routes. It needs no privilege since Linux 5.7.
func BindToLoopback(fd int) error {
	err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, loopback)
	if err == unix.EPERM {
		return fmt.Errorf("%w: to listen on the loopback interface needs Linux 5.7, or CAP_NET_RAW", os.NewSyscallError("setsockopt", err))
	}
	return os.NewSyscallError("setsockopt", err)
}

// Listening borrows a listener and returns the address by which it is known: its own, or 127.0.0.1 or ::1 if it
// is bound to all addresses and to the loopback interface.
func Listening(fd int) (netip.AddrPort, error) {
	at, err := Local(fd)
	if err != nil || !at.Addr().IsUnspecified() || !IsBoundToLoopback(fd) {
		return at, err
	}
	if at.Addr().Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port()), nil
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), at.Port()), nil
}

// IsBoundToLoopback tells whether BindToLoopback was called for a socket.
func IsBoundToLoopback(fd int) bool {
	device, _ := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	return device == loopback
}
