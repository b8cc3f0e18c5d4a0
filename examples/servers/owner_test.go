package servers_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Of servers that do not say which process answers, the kernel says who has the other end.

// owner returns a process that has the other end of a connection that is still open.
func owner(c net.Conn) (pid int, err error) {
	ours, theirs := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	inode := ""
	err = eachSocket(func(s socket) {
		if s.local == theirs && s.remote == ours {
			inode = s.inode
		}
	})
	if err == nil && (inode == "" || inode == "0") { // answered, and closed at once
		err = fmt.Errorf("%w: the other end of %v is closed", errGone, ours)
	}
	if err != nil {
		return 0, err
	}
	pids := holders(inode)
	if len(pids) == 0 {
		return 0, fmt.Errorf("%w: who had the other end of %v", errGone, ours)
	}
	return pids[len(pids)-1], nil // a child rather than who has started it
}

// socket is a line of /proc/net/tcp (man 5 proc_net_tcp).
type socket struct {
	local, remote netip.AddrPort
	state, inode  string
}

const listening = "0A"

func eachSocket(f func(socket)) error {
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		lines := bufio.NewScanner(file)
		for lines.Scan(); lines.Scan(); { // after the header
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 {
				continue
			}
			local, err := parseAddress(fields[1])
			if err != nil {
				return err
			}
			remote, err := parseAddress(fields[2])
			if err != nil {
				return err
			}
			f(socket{local, remote, fields[3], fields[9]})
		}
	}
	return nil
}

// parseAddress reads words of the machine's byte order in hexadecimal, a colon, and the port.
func parseAddress(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	var ip []byte
	for ; len(host) >= 8; host = host[8:] {
		word, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, err
		}
		ip = binary.NativeEndian.AppendUint32(ip, uint32(word))
	}
	addr, _ := netip.AddrFromSlice(ip)
	number, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), err
}

// holders returns the processes that have a socket open, in the order of their numbers.
func holders(inode string) (pids []int) {
	want := "socket:[" + inode + "]"
	folders, _ := filepath.Glob("/proc/[0-9]*/fd")
	for _, folder := range folders {
		entries, err := os.ReadDir(folder)
		if err != nil {
			continue // it has ended
		}
		for _, entry := range entries {
			if name, err := os.Readlink(filepath.Join(folder, entry.Name())); err == nil && name == want {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(folder)))
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// accepting returns the processes that have a listener of a port open.
func accepting(port uint16) (pids []int) {
	eachSocket(func(s socket) {
		if s.state == listening && s.local.Port() == port {
			pids = append(pids, holders(s.inode)...)
		}
	})
	return pids
}

// ancestors returns a process, its process group, and who has started it, and so on; none if it
// has ended.
func ancestors(pid int) (above []int) {
	for pid > 1 && len(above) < 32 {
		group, err := syscall.Getpgid(pid)
		if err != nil {
			break
		}
		above = append(above, pid, group)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		pid, _ = strconv.Atoi(fields[1]) // man 5 proc_pid_stat
	}
	return above
}
