// Package pgroup finds what is left of a process group.
//
// Each process that handfast starts leads a group of its own (setpgid(2)). When that process has ended
// its children may go on, with all descriptors that they inherited. Until the process is reaped
// (wait(2)) its number, and so the group's, cannot be given to others: so long, and no longer, is it
// right to signal the group.
//
// Processes that leave their group (setsid(2), as daemons do) are not found.
package pgroup

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// Living returns the processes of a group that have not ended, the lowest number first. It looks at
// all processes of the machine: see Left for who asks again and again. Without /proc it finds none.
func Living(pgid int) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names { // the kernel lists them in order
		if pid, err := strconv.Atoi(name); err == nil && lives(pid, pgid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Left is Living for who knows already whom it has returned: the machine is only searched when none
// of those is left, for what they may have started meanwhile.
func Left(pgid int, before []int) []int {
	var pids []int
	for _, pid := range before {
		if lives(pid, pgid) {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return Living(pgid)
	}
	return pids
}

// lives tells whether a process has not ended and is of the group (man 5 proc_pid_stat). Its first
// thread may have ended before the others: it counts as a zombie, and the process does not.
func lives(pid, pgid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:]) // a name may contain anything
	if err != nil || len(fields) < 3 || string(fields[2]) != strconv.Itoa(pgid) {
		return false
	}
	switch state := fields[0][0]; state {
	case 'Z', 'X':
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		return len(threads) > 1
	default:
		return true
	}
}
