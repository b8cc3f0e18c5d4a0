package reuseport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/handfast/handfast/master/sockdiag"
)

// maxCommand is how many bytes of a process's command line are told.
const maxCommand = 100

// Owner is a process that holds a socket.
type Owner struct {
	PID     int
	Command string // its command line, cut to 100 bytes; empty if it cannot be read
}

// String is for people: a pid, and what it is.
func (o Owner) String() string { return fmt.Sprintf("pid %d (%q)", o.PID, o.Command) }

// Owners returns the processes that listen on an address, or on one that includes it or is
// included by it; if none does, those that hold another socket of its port. It sees processes
// of its own network and PID namespaces, those of other users only as root.
func Owners(addr netip.AddrPort) ([]Owner, error) {
	all, err := sockdiag.List(addr.Port(), sockdiag.Listening, sockdiag.Established, sockdiag.SynSent,
		sockdiag.FinWait1, sockdiag.FinWait2, sockdiag.CloseWait, sockdiag.LastAck, sockdiag.Closing)
	if err != nil {
		return nil, fmt.Errorf("reuseport: %w", err)
	}
	listening, others := make(map[string]bool), make(map[string]bool)
	for _, s := range all {
		switch {
		case s.Inode == 0 || !Overlap(s.Local.Addr(), addr.Addr()): // no process has it, or it is another address's
		case s.State == sockdiag.Listening:
			listening[socketLink(s.Inode)] = true
		default:
			others[socketLink(s.Inode)] = true
		}
	}
	if len(listening) == 0 {
		listening = others
	}
	if len(listening) == 0 {
		return nil, nil
	}
	return holders(listening)
}

// holders returns the processes that have one of the sockets open, which are named as links of
// /proc/PID/fd name them.
func holders(sockets map[string]bool) (owners []Owner, err error) {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("reuseport: %w", err)
	}
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err == nil && holds(pid, sockets) {
			owners = append(owners, Owner{PID: pid, Command: command(pid)})
		}
	}
	return owners, nil
}

func socketLink(inode uint64) string { return fmt.Sprintf("socket:[%d]", inode) }

// Overlap tells whether sockets of the same port may be in each other's way. An address that
// is not valid is that of no host in particular.
func Overlap(a, b netip.Addr) bool {
	a, b = a.Unmap().WithZone(""), b.Unmap().WithZone("")
	all := func(a, b netip.Addr) bool { // that a is all addresses, of which b is one
		return !a.IsValid() || a == netip.IPv6Unspecified() || a == netip.IPv4Unspecified() && b.Is4()
	}
	return a == b || all(a, b) || all(b, a)
}

// holds tells whether a process has one of the sockets open.
func holds(pid int, sockets map[string]bool) bool {
	files := fmt.Sprintf("/proc/%d/fd", pid)
	dir, err := os.Open(files)
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	return slices.ContainsFunc(names, func(name string) bool {
		target, err := os.Readlink(files + "/" + name)
		return err == nil && sockets[target]
	})
}

func command(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	line := strings.TrimRight(strings.ReplaceAll(string(b), "\x00", " "), " ")
	return line[:min(len(line), maxCommand)]
}

// inUse adds to an error of listening which processes are in the way.
func inUse(err error) error {
	var op *net.OpError
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) {
		return err
	}
	addr, ok := op.Addr.(*net.TCPAddr)
	if !ok {
		return err
	}
	owners, _ := Owners(addr.AddrPort())
	if len(owners) == 0 {
		return fmt.Errorf("%w; who listens there cannot be seen from here: as root, ss -ltnp 'sport = :%d' tells", err, addr.Port)
	}
	kill := "kill"
	names := make([]string, len(owners))
	for i, owner := range owners {
		names[i] = owner.String()
		kill += " " + strconv.Itoa(owner.PID)
	}
	return fmt.Errorf("%w: by %s; if it is left from an earlier run, end it: %s", err, strings.Join(names, ", "), kill)
}
