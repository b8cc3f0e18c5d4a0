package servers_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/master/sockdiag"
)

// Of servers that do not say which process answers, the kernel says who has the other end.

// owner returns a process that has the other end of a connection that is still open.
func owner(c net.Conn) (pid int, err error) {
	ours, theirs := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	all, err := sockdiag.List(theirs.Port(), sockdiag.Established, sockdiag.FinWait1, sockdiag.FinWait2, sockdiag.CloseWait, sockdiag.LastAck, sockdiag.Closing)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(all, func(s sockdiag.Socket) bool { return s.Local == theirs && s.Remote == ours })
	if i < 0 || all[i].Inode == 0 { // answered, and closed at once
		return 0, fmt.Errorf("%w: the other end of %v is closed", errGone, ours)
	}
	pids := holders(all[i].Inode)
	if len(pids) == 0 {
		return 0, fmt.Errorf("%w: who had the other end of %v", errGone, ours)
	}
	return pids[len(pids)-1], nil // a child rather than who has started it
}

// holders returns the processes that have a socket open, in the order of their numbers.
func holders(inode uint64) (pids []int) {
	want := fmt.Sprintf("socket:[%d]", inode)
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
func accepting(t *testing.T, port uint16) (pids []int) {
	t.Helper()
	listeners, err := sockdiag.List(port, sockdiag.Listening)
	check(t, err)
	for _, s := range listeners {
		pids = append(pids, holders(s.Inode)...)
	}
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
