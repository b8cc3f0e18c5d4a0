package seccomp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/pgroup"
)

// Caller is a thread that waits in a system call, and the descriptor that the call is about. The thread
// may end meanwhile, and its number be another's: ask Notifications.StillValid afterwards.
type Caller struct {
	TID, FD int
}

// BindAddress returns the address that a call of bind was given, if that is one of IP, and its family. The
// error says that it cannot be known: it matches fs.ErrPermission if the process must not be looked into.
func (c Caller) BindAddress(n *Notification) (bound netip.AddrPort, family uint16, ok bool, err error) {
	if n.Args[2] == 0 || n.Args[2] > maxSockaddr {
		return bound, 0, false, nil
	}
	text, err := c.read(n.Args[1], int(n.Args[2]))
	if pgroup.Ended(err) || errors.Is(err, unix.EFAULT) { // it has ended; or what the kernel will say, too
		return bound, 0, false, nil
	}
	if err != nil {
		return bound, 0, false, err
	}
	bound, family, ok = parseSockaddr(text)
	return bound, family, ok, nil
}

// IsTCP tells whether the descriptor is a TCP socket of a family. Listeners of Go programs are
// sockets of MPTCP (since Go 1.24). The error is as BindAddress's.
func (c Caller) IsTCP(family uint16) (bool, error) {
	protocol, err := c.Protocol()
	protocol, ipv6 := strings.CutSuffix(strings.TrimPrefix(protocol, "MP"), "v6")
	return protocol == "TCP" && ipv6 == (family == unix.AF_INET6), err
}

// Protocol returns the name of the socket's protocol, "TCP" or "UDPv6". It is empty when there is
// no such socket. It does not open a copy of the socket, as pidfd_getfd would: containers often refuse that. The error is as
// BindAddress's.
//
// The descriptor may be a file of a file system that never answers, and may become one while we look. So we open
// its path only (O_PATH, man 2 open: no file system is asked), see that it is a socket's, and ask that.
func (c Caller) Protocol() (string, error) {
	at, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", c.TID, c.FD), unix.O_PATH|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		defer unix.Close(at)
	case pgroup.Ended(err): // or it has closed the descriptor
		return "", nil
	default:
		return "", os.NewSyscallError("open", err)
	}
	own := fmt.Sprintf("/proc/self/fd/%d", at)
	if link, err := os.Readlink(own); err != nil || !strings.HasPrefix(link, "socket:[") {
		return "", nil
	}
	name := make([]byte, 32)
	n, err := unix.Getxattr(own, "system.sockprotoname", name)
	if err != nil {
		return "", nil
	}
	return strings.TrimRight(string(name[:n]), "\x00"), nil
}

// OnlyIPv6 tells whether a socket of IPv6 takes no IPv4. It is false where that cannot be known: a container
// may refuse pidfd_getfd.
func (c Caller) OnlyIPv6() bool {
	process, err := unix.PidfdOpen(listening.Process(c.TID), 0)
	if err != nil {
		return false
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, c.FD, 0)
	if err != nil {
		return false
	}
	defer new(fdpass.Bin).Discard(fd) // it may be any file, whose close may wait
	only, _ := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return only != 0
}

// Flags returns the flags of the descriptor and its file, O_CLOEXEC among them.
func (c Caller) Flags() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", c.TID, c.FD))
	if err != nil {
		return 0
	}
	return parseFlags(string(text))
}

// parseFlags finds the flags in a descriptor's fdinfo, which are octal.
func parseFlags(fdinfo string) int {
	for line := range strings.Lines(fdinfo) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, _ := strconv.ParseInt(strings.TrimSpace(value), 8, 32)
			return int(flags)
		}
	}
	return 0
}

// read returns up to n bytes of the thread's memory.
func (c Caller) read(at uint64, n int) ([]byte, error) {
	buf := make([]byte, n)
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(n)
	got, err := unix.ProcessVMReadv(c.TID, local, []unix.RemoteIovec{{Base: uintptr(at), Len: n}}, 0)
	if err != nil {
		return nil, os.NewSyscallError("process_vm_readv", err)
	}
	return buf[:got], nil
}
