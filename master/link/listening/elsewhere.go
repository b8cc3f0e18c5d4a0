package listening

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/handfast/handfast/master/sockdiag"
)

// Listens returns the TCP addresses on which processes below a root listen, as they are in the
// root's network namespace, in no order. Processes that cannot be looked into are left out.
func Listens(root int) (all []netip.AddrPort) {
	sockets := socketsOf(root, "tcp", false)
	if len(sockets) == 0 {
		return nil
	}
	for _, pid := range descendants([]int{root}) {
		for _, fd := range numbers(fmt.Sprintf("/proc/%d/fd", pid)) {
			if addr, ok := sockets[Socket(pid, fd)]; ok && !slices.Contains(all, addr) {
				all = append(all, addr)
			}
		}
	}
	return all
}

// socketsOf returns the sockets in a process's network namespace, by inode: of network tcp or udp, all
// or those that listen.
func socketsOf(pid int, network string, all bool) map[uint64]netip.AddrPort {
	sockets := make(map[uint64]netip.AddrPort)
	for _, table := range []string{network, network + "6"} {
		readSockets(fmt.Sprintf("/proc/%d/net/%s", pid, table), all, sockets)
	}
	return sockets
}

// readSockets adds the sockets of a table (proc_net_tcp in the kernel's documentation), by inode: all, or
// those that listen.
func readSockets(table string, all bool, sockets map[uint64]netip.AddrPort) {
	file, err := os.Open(table)
	if err != nil {
		return
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		const local, state, inode, listen = 1, 3, 9, "0A"
		fields := strings.Fields(lines.Text())
		if len(fields) <= inode || !all && fields[state] != listen {
			continue
		}
		n, err := strconv.ParseUint(fields[inode], 10, 64)
		if addr, ok := sockdiag.ParseHex(fields[local]); ok && err == nil {
			sockets[n] = addr
		}
	}
}

// Holds tells whether a process below a root has a socket on a port, in the root's network namespace: of
// network udp any, of tcp one that listens.
func Holds(root int, network string, port uint16) bool {
	sockets := socketsOf(root, network, network == "udp")
	for inode, at := range sockets {
		if at.Port() != port {
			delete(sockets, inode)
		}
	}
	if len(sockets) == 0 {
		return false
	}
	for _, pid := range descendants([]int{root}) {
		for _, fd := range numbers(fmt.Sprintf("/proc/%d/fd", pid)) {
			if _, ok := sockets[Socket(pid, fd)]; ok {
				return true
			}
		}
	}
	return false
}
