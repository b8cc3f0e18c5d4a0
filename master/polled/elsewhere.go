package polled

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Listens returns the TCP addresses on which processes below a root listen, as they are in the
// root's network namespace, in no order. What cannot be looked into is left out.
func Listens(root int) (all []netip.AddrPort) {
	sockets := make(map[uint64]netip.AddrPort)
	for _, table := range []string{"tcp", "tcp6"} {
		readListeners(fmt.Sprintf("/proc/%d/net/%s", root, table), sockets)
	}
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

// readListeners adds the listening sockets of a table, by inode.
func readListeners(table string, sockets map[uint64]netip.AddrPort) {
	readSockets(table, false, sockets)
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
		if addr, ok := parseSocket(fields[local]); ok && err == nil {
			sockets[n] = addr
		}
	}
}

// parseSocket reads an address such as 0100007F:1F90: words in the machine's byte order.
func parseSocket(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok && err == nil
}

// Holds tells whether a process below a root has a socket on a port, in the root's network namespace: of
// network udp any, of tcp one that listens.
func Holds(root int, network string, port uint16) bool {
	sockets := make(map[uint64]netip.AddrPort)
	for _, table := range []string{network, network + "6"} {
		readSockets(fmt.Sprintf("/proc/%d/net/%s", root, table), network == "udp", sockets)
	}
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
