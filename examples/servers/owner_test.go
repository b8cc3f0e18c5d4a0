package servers_test

import (
	"fmt"
	"iter"
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
	for pid := range holders(all[i].Inode) {
		return pid, nil // a child rather than its parent
	}
	return 0, fmt.Errorf("%w: who had the other end of %v", errGone, ours)
}

// holders finds the processes that have a socket open, the highest number first: those that tests
// have started come before all others, whose descriptors are many.
func holders(inode uint64) iter.Seq[int] {
	want := fmt.Sprintf("socket:[%d]", inode)
	return func(yield func(int) bool) {
		entries, _ := os.ReadDir("/proc")
		var pids []int
		for _, entry := range entries {
			if pid, err := strconv.Atoi(entry.Name()); err == nil {
				pids = append(pids, pid)
			}
		}
		slices.Sort(pids)
		for _, pid := range slices.Backward(pids) {
			if has(pid, want) && !yield(pid) {
				return
			}
		}
	}
}

// has tells whether a process has open what its descriptors call so.
func has(pid int, name string) bool {
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(folder) // none if it has ended
	return slices.ContainsFunc(entries, func(entry os.DirEntry) bool {
		is, err := os.Readlink(filepath.Join(folder, entry.Name()))
		return err == nil && is == name
	})
}

// accepting returns the processes that have a listener of a port open.
func accepting(t *testing.T, port uint16) (pids []int) {
	t.Helper()
	listeners, err := sockdiag.List(port, sockdiag.Listening)
	check(t, err)
	for _, s := range listeners {
		pids = slices.AppendSeq(pids, holders(s.Inode))
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
