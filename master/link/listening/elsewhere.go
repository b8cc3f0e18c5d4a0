package listening

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/handfast/handfast/master/sockdiag"
)

// Listens returns the TCP addresses on which processes below a root listen, as they are in the
// root's network namespace, in no order. Processes that cannot be looked into are left out.
func Listens(root int) (all []netip.AddrPort) {
	sockets := socketsOf(root, "tcp", sockdiag.Listening)
	if len(sockets) == 0 {
		return nil
	}
	pids, _ := descendants([]int{root})
	for _, pid := range pids {
		for _, fd := range numbers(fmt.Sprintf("/proc/%d/fd", pid)) {
			if addr, ok := sockets[Socket(pid, fd)]; ok && !slices.Contains(all, addr) {
				all = append(all, addr)
			}
		}
	}
	return all
}

// socketsOf returns the sockets in a process's network namespace, by inode.
func socketsOf(pid int, network string, states ...sockdiag.State) map[uint64]netip.AddrPort {
	sockets := make(map[uint64]netip.AddrPort)
	for _, s := range sockdiag.SeenBy(pid, network, states...) {
		sockets[s.Inode] = s.Local
	}
	return sockets
}

// Holds tells whether a process below a root has a socket on a port, in the root's network namespace: of
// network udp any, of tcp one that listens.
func Holds(root int, network string, port uint16) bool {
	var states []sockdiag.State
	if network == "tcp" {
		states = []sockdiag.State{sockdiag.Listening}
	}
	sockets := socketsOf(root, network, states...)
	for inode, at := range sockets {
		if at.Port() != port {
			delete(sockets, inode)
		}
	}
	if len(sockets) == 0 {
		return false
	}
	pids, _ := descendants([]int{root})
	for _, pid := range pids {
		for _, fd := range numbers(fmt.Sprintf("/proc/%d/fd", pid)) {
			if _, ok := sockets[Socket(pid, fd)]; ok {
				return true
			}
		}
	}
	return false
}
