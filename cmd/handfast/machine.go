package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/reuseport"
)

// leastBacklog is how many connections should be able to wait for a slot that is busy for a
// moment. Linux has had 4096 since 5.4.
const leastBacklog = 1024

// tryFiles tells whether the limit of open files is high enough for all that may be parked.
func tryFiles(config *master.Config) error {
	limit, need := fdlimit.Limit(), config.Files()+config.Balancer.MaxParked
	if limit < need {
		return fmt.Errorf("the limit is %d; %d workers and --max-parked %d need %d: raise it with ulimit -n or LimitNOFILE=",
			limit, config.Supervisor.Workers, config.Balancer.MaxParked, need)
	}
	return nil
}

// tryBacklog tells whether enough connections can wait in the kernel.
func tryBacklog() error {
	const path = "/proc/sys/net/core/somaxconn"
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n < leastBacklog {
		return fmt.Errorf("net.core.somaxconn is %d: in a burst that many connections wait for a slot, and further ones are dropped; sysctl -w net.core.somaxconn=4096", n)
	}
	return nil
}

// tryAddress tells whether an address can be bound now; free: also if the machine does not have
// it yet. It does not listen.
func tryAddress(ctx context.Context, address string, free bool) error {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	sockaddr := unix.Sockaddr(&unix.SockaddrInet6{Port: addr.Port})
	switch ip4 := addr.IP.To4(); {
	case ip4 != nil:
		unix.Close(fd)
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		sockaddr = &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip4)}
	case addr.IP != nil:
		sockaddr = &unix.SockaddrInet6{Port: addr.Port, Addr: [16]byte(addr.IP), ZoneId: zone(addr.Zone)}
	}
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if _, ok := sockaddr.(*unix.SockaddrInet6); ok && addr.IP != nil {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	// As the listener does: connections that linger are no hindrance.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if free {
		if err := fdpass.SetFreebind(fd); err != nil {
			return err
		}
	}
	switch err := unix.Bind(fd, sockaddr); err {
	case nil:
		return tryPort(addr.Port)
	case unix.EADDRINUSE, unix.EACCES:
		return listenError(ctx, address, err)
	case unix.EADDRNOTAVAIL:
		why, _ := absent(address)
		return fmt.Errorf("%w: %s; run tries for %v, --freebind listens all the same", os.NewSyscallError("bind", err), why, addressPatience)
	default:
		return os.NewSyscallError("bind", err)
	}
}

func zone(name string) uint32 {
	if iface, err := net.InterfaceByName(name); err == nil {
		return uint32(iface.Index)
	}
	return 0
}

// tryPort tells whether an outgoing connection may take the port while nobody listens.
func tryPort(port int) error {
	text, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	var low, high int
	if n, _ := fmt.Sscan(string(text), &low, &high); n < 2 || port == 0 || port < low || port > high {
		return nil
	}
	reserved, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
	if isReserved(strings.TrimSpace(string(reserved)), port) {
		return nil
	}
	return fmt.Errorf("port %d is among those of outgoing connections (net.ipv4.ip_local_port_range, %d to %d), one of which can take it before handfast starts: sysctl -w net.ipv4.ip_local_reserved_ports=%[1]d",
		port, low, high)
}

// isReserved reads a list such as 8080,9148-9150.
func isReserved(list string, port int) bool {
	return slices.ContainsFunc(strings.Split(list, ","), func(item string) bool {
		from, to, isRange := strings.Cut(item, "-")
		if !isRange {
			to = from
		}
		low, err := strconv.Atoi(from)
		high, err2 := strconv.Atoi(to)
		return err == nil && err2 == nil && low <= port && port <= high
	})
}

// maxDefaultWorkers is the most slots that there are by default: what both routes can do.
const maxDefaultWorkers = reuseport.MaxSlots

// defaultWorkers is how many slots there are if nobody says, and where the number comes from. The Go
// runtime knows of CPU affinity (NumCPU) and of a cgroup's quota, which it rounds up, to 2 at least
// (GOMAXPROCS).
func defaultWorkers() (n int, origin string) {
	n = runtime.GOMAXPROCS(0)
	switch {
	case os.Getenv("GOMAXPROCS") == strconv.Itoa(n):
		origin = "GOMAXPROCS"
	case n < runtime.NumCPU():
		origin = "the cgroup's CPU quota"
	default:
		origin = "number of CPUs"
	}
	if n > maxDefaultWorkers {
		n, origin = maxDefaultWorkers, fmt.Sprintf("%s (%d), at most %d", origin, n, maxDefaultWorkers)
	}
	return n, "default: " + origin
}
