package listening

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/sockdiag"
)

// Sharing returns the processes below a root that wait for connections on the same listener, if there
// are two or more: those of the listener that most wait on. Only listeners on addresses that wanted
// accepts are looked at. A process that is busy at the moment is left out.
func Sharing(root int, wanted func(netip.AddrPort) bool) (pids []int) {
	sockets := socketsOf(root, "tcp", sockdiag.Listening)
	waiting := make(map[uint64][]int)
	below, _ := descendants([]int{root})
	for _, pid := range below {
		for inode := range asleep(pid, func(inode uint64) bool { at, ok := sockets[inode]; return ok && wanted(at) }) {
			waiting[inode] = append(waiting[inode], pid)
		}
	}
	for _, all := range waiting {
		if len(all) > max(1, len(pids)) {
			pids = all
		}
	}
	slices.Sort(pids)
	return pids
}

// asleep returns the listeners on which a thread of a process waits right now. Unlike for look, an
// epoll instance that somebody ought to wait on is not enough: a process inherits those of the one
// that it was forked from.
func asleep(pid int, wanted func(inode uint64) bool) map[uint64]bool {
	folder := fmt.Sprintf("/proc/%d/", pid)
	own := make(map[int]uint64)
	epolls := make(map[uint64]string) // what they watch
	for _, fd := range numbers(folder + "fd") {
		if inode := Socket(pid, fd); inode != 0 && wanted(inode) {
			own[fd] = inode
		} else if name, err := os.Readlink(folder + "fd/" + strconv.Itoa(fd)); err == nil && name == "anon_inode:[eventpoll]" {
			text, _ := os.ReadFile(folder + "fdinfo/" + strconv.Itoa(fd))
			epolls[uint64(fd)] = string(text)
		}
	}
	found := make(map[uint64]bool)
	if len(own) == 0 {
		return found
	}
	for _, tid := range numbers(folder + "task") {
		text, _ := os.ReadFile(fmt.Sprintf("%stask/%d/syscall", folder, tid))
		call, ok := parseCall(string(text))
		if !ok {
			continue
		}
		watched := ""
		if call.number == sysEpollWait || call.number == unix.SYS_EPOLL_PWAIT || call.number == unix.SYS_EPOLL_PWAIT2 {
			watched = epolls[call.args[0]]
		}
		for fd, inode := range own {
			if watches(watched, inode) || call.waits(fd, func(at uint64, buf []byte) int { return readMemory(tid, at, buf) }) {
				found[inode] = true
			}
		}
	}
	return found
}

// Having returns the processes below a root that were started with a variable in their environment.
func Having(root int, variable string) (pids []int) {
	below, _ := descendants([]int{root})
	for _, pid := range below {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if bytes.HasPrefix(text, []byte(variable+"=")) || bytes.Contains(text, []byte("\x00"+variable+"=")) {
			pids = append(pids, pid)
		}
	}
	return pids
}
