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
	for table, family := range map[string]uint8{"/proc/net/tcp": unix.AF_INET, "/proc/net/tcp6": unix.AF_INET6} {
		file, err := os.Open(table)
		if errors.Is(err, fs.ErrNotExist) && family == unix.AF_INET6 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sockdiag: %w", err)
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			if s, ok := parseLine(lines.Text()); ok && s.Local.Port() == port && states&(1<<s.State) != 0 {
				s.Family = family
				all = append(all, s)
			}
		}
		err = lines.Err()
		file.Close()
		if err != nil {
			return nil, fmt.Errorf("sockdiag: %w", err)
		}
	}
	return all, nil
}

// parseLine reads a line of such a table (proc_net_tcp in the kernel's documentation).
func parseLine(line string) (s Socket, ok bool) {
	const local, remote, state, queues, uid, inode = 1, 2, 3, 4, 7, 9
	fields := strings.Fields(line)
	if len(fields) <= inode {
		return s, false
	}
	var ok1, ok2 bool
	s.Local, ok1 = ParseHex(fields[local])
	s.Remote, ok2 = ParseHex(fields[remote])
	number, err1 := strconv.ParseUint(fields[state], 16, 8)
	owner, err2 := strconv.ParseUint(fields[uid], 10, 32)
	ino, err3 := strconv.ParseUint(fields[inode], 10, 64)
	_, waiting, _ := strings.Cut(fields[queues], ":")
	queue, err4 := strconv.ParseUint(waiting, 16, 32)
	s.State, s.UID, s.Inode = State(number), uint32(owner), ino
	if s.State == Listening {
		s.Remote, s.Queue = netip.AddrPort{}, int(queue)
	}
	return s, ok1 && ok2 && errors.Join(err1, err2, err3, err4) == nil
}

// ParseHex reads an address of these tables, such as 0100007F:1F90: words in the machine's byte
// order.
func ParseHex(s string) (netip.AddrPort, bool) {
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
