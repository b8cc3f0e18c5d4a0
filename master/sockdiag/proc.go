package sockdiag

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// readTables is ask by way of /proc/net, where the kernel lists the sockets of all ports.
func readTables(port uint16, states uint32) (all []Socket, err error) {
	err = walk("/proc/net", "tcp", states, func(s Socket) {
		if s.Local.Port() == port {
			all = append(all, s)
		}
	})
	return all, err
}

// SeenBy returns the sockets of a network, tcp or udp, in a process's network namespace, which may be another one than
// ours; those in one of the states, or all of them if none is named. What cannot be read is left out.
func SeenBy(pid int, network string, states ...State) (all []Socket) {
	mask := maskOf(states)
	if mask == 0 {
		mask = ^mask
	}
	if network == "tcp" && sharesNetwork(pid) { // /proc/net/tcp walks over all connections also for the few listeners
		if all, err := ask(anyPort, mask); err == nil {
			return all
		}
	}
	walk(fmt.Sprintf("/proc/%d/net", pid), network, mask, func(s Socket) { all = append(all, s) })
	return all
}

// sharesNetwork tells whether a process is known to be in our network namespace.
func sharesNetwork(pid int) bool {
	ours, err := os.Readlink("/proc/thread-self/ns/net")
	theirs, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && ours == theirs
}

// walk calls each with the sockets in a folder's tables of a network, those of both families, that are in one of the
// states.
//
// The kernel lists listeners first (tcp_seq_start), and walks the whole table of connections, which has room for half a
// million, again and again while it changes: on a busy machine that takes tenths of a second. So who wants listeners
// reads no further.
func walk(folder, network string, states uint32, each func(Socket)) error {
	for _, table := range []struct {
		name   string
		family uint8
	}{{network, unix.AF_INET}, {network + "6", unix.AF_INET6}} {
		file, err := os.Open(folder + "/" + table.name)
		if errors.Is(err, fs.ErrNotExist) && table.family == unix.AF_INET6 {
			continue
		}
		if err != nil {
			return fmt.Errorf("sockdiag: %w", err)
		}
		lines := bufio.NewScanner(file)
		lines.Scan() // the columns' names
		for lines.Scan() {
			s, ok := parseLine(lines.Text(), states)
			if ok {
				s.Family = table.family
				each(s)
			} else if states == 1<<Listening {
				break
			}
		}
		file.Close()
		if err := lines.Err(); err != nil {
			return fmt.Errorf("sockdiag: %w", err)
		}
	}
	return nil
}

// parseLine reads a line of such a table (proc_net_tcp in the kernel's documentation), if it is of a socket in one of
// the states.
func parseLine(line string, states uint32) (s Socket, ok bool) {
	const local, remote, state, queues, uid, inode = 1, 2, 3, 4, 7, 9
	fields := strings.Fields(line)
	if len(fields) <= inode {
		return s, false
	}
	number, err := strconv.ParseUint(fields[state], 16, 8)
	if err != nil || states&(1<<number) == 0 {
		return s, false
	}
	var ok1, ok2 bool
	s.Local, ok1 = parseHex(fields[local])
	s.Remote, ok2 = parseHex(fields[remote])
	owner, err1 := strconv.ParseUint(fields[uid], 10, 32)
	ino, err2 := strconv.ParseUint(fields[inode], 10, 64)
	_, waiting, _ := strings.Cut(fields[queues], ":")
	queue, err3 := strconv.ParseUint(waiting, 16, 32)
	s.State, s.UID, s.Inode = State(number), uint32(owner), ino
	if s.State == Listening {
		s.Remote, s.Queue = netip.AddrPort{}, int(queue)
	}
	return s, ok1 && ok2 && errors.Join(err1, err2, err3) == nil
}

// parseHex reads an address of these tables, such as 0100007F:1F90: words in the machine's byte
// order.
func parseHex(s string) (netip.AddrPort, bool) {
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
