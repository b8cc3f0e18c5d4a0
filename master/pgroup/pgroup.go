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
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience is for how long Left tries to find out.
	patience = time.Second
	pause    = 20 * time.Millisecond
)

// Living returns the processes of a group that have not ended, the lowest number first. It looks at
// all processes of the machine, once for all callers at about the same time; see Left for looking
// again and again. Without /proc it finds none. The slice is not the caller's to change.
func Living(pgid int) []int {
	pids, _ := living(pgid)
	return pids
}

func living(pgid int) (pids []int, err error) {
	asked := begun.Load()
	surveying.Lock()
	defer surveying.Unlock()
	if latest.number <= asked { // it may be older than the question
		latest.number = begun.Add(1)
		latest.groups, latest.err = survey()
	}
	return latest.groups[pgid], latest.err
}

// All returns all processes that have not ended, those of the kernel left out.
func All() (pids []int) {
	groups, _ := survey()
	for _, group := range groups {
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
		err    error         // there may be more
	}
)

// survey looks at all processes. An error says that there may be more.
func survey() (groups map[int][]int, err error) {
	groups = make(map[int][]int)
	dir, err := os.Open("/proc")
	if errors.Is(err, fs.ErrNotExist) {
		return groups, nil
	}
	if err != nil {
		return groups, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names { // the kernel lists them in order
		pid, notPID := strconv.Atoi(name)
		if notPID != nil {
			continue
		}
		pgid, unknown := groupOf(pid)
		if pgid > 0 {
			groups[pgid] = append(groups[pgid], pid)
		}
		err = cmp.Or(err, unknown)
	}
	return groups, err
}

// Left is Living for a caller that has asked before and passes on what it was told: the machine is only searched when
// none of those is left, for processes that they may have started meanwhile. If it finds none and cannot know, for want of descriptors
// or memory, it tries again for a while: nobody would end those that it does not find.
func Left(pgid int, before []int) []int {
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		pids, err := left(pgid, before)
		if err == nil || len(pids) > 0 || time.Now().After(end) {
			return pids
		}
	}
}

func left(pgid int, before []int) (pids []int, err error) {
	for _, pid := range before {
		of, unknown := groupOf(pid)
		if of == pgid {
			pids = append(pids, pid)
		}
		err = cmp.Or(err, unknown)
	}
	if len(pids) == 0 && err == nil {
		return living(pgid)
	}
	return pids, err
}

// Ended tells whether an error about a process, or a thread, is that there is none any more: its folder in /proc has gone (ENOENT), or went
// while it was read (ESRCH, as of system calls that take its number).
func Ended(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// groupOf returns the group of a process that has not ended, else 0 (man 5 proc_pid_stat). Its first
// thread may have ended before the others: it counts as a zombie, and the process does not. An error says that nobody knows.
func groupOf(pid int) (pgid int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil && !Ended(err) {
		return 0, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:]) // a name may contain anything
	if err != nil || len(fields) < 3 {
		return 0, nil
	}
	if state := fields[0][0]; state == 'Z' || state == 'X' {
		if threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)); len(threads) <= 1 {
			return 0, nil
		}
	}
	pgid, _ = strconv.Atoi(string(fields[2]))
	return pgid, nil
}
