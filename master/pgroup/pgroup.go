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
	"sync"
	"sync/atomic"
)

// Living returns the processes of a group that have not ended, the lowest number first. It looks at
// all processes of the machine, once for all callers at about the same time; see Left for looking
// again and again. Without /proc it finds none. The slice is not the caller's to change.
func Living(pgid int) []int {
	asked := begun.Load()
	surveying.Lock()
	defer surveying.Unlock()
	if latest.number <= asked { // it may be older than the question
		latest.number = begun.Add(1)
		latest.groups = survey()
	}
	return latest.groups[pgid]
}

// All returns all processes that have not ended, those of the kernel left out.
func All() (pids []int) {
	for _, group := range survey() {
		pids = append(pids, group...)
	}
	return pids
}

var (
	begun     atomic.Uint64 // number of surveys
	surveying sync.Mutex    // guards latest
	latest    struct {
		number uint64
		groups map[int][]int // processes that live, by group
	}
)

// survey looks at all processes.
func survey() map[int][]int {
	groups := make(map[int][]int)
	dir, err := os.Open("/proc")
	if err != nil {
		return groups
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names { // the kernel lists them in order
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if pgid := groupOf(pid); pgid > 0 {
			groups[pgid] = append(groups[pgid], pid)
		}
	}
	return groups
}

// Left is Living for a caller that has asked before and passes on what it was told: the machine is only searched when
// none of those is left, for processes that they may have started meanwhile.
func Left(pgid int, before []int) []int {
	var pids []int
	for _, pid := range before {
		if groupOf(pid) == pgid {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return Living(pgid)
	}
	return pids
}

// groupOf returns the group of a process that has not ended, else 0 (man 5 proc_pid_stat). Its first
// thread may have ended before the others: it counts as a zombie, and the process does not.
func groupOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:]) // a name may contain anything
	if err != nil || len(fields) < 3 {
		return 0
	}
	if state := fields[0][0]; state == 'Z' || state == 'X' {
		if threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)); len(threads) <= 1 {
			return 0
		}
	}
	pgid, _ := strconv.Atoi(string(fields[2]))
	return pgid
}
