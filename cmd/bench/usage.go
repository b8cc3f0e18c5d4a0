package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processorTime is what processes have used until now, in user mode and in the
// kernel, with all their threads, also those that have ended.
//
// It reads the processes' own clocks, which are exact to the nanosecond; the
// ticks in /proc/PID/stat are not.
func processorTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		// As clock_getcpuclockid(3) returns it: CPUCLOCK_SCHED of a process.
		clock := int32(^pid<<3 | 2)
		var t unix.Timespec
		if err := unix.ClockGettime(clock, &t); err != nil {
			return 0, fmt.Errorf("process %d: %w", pid, os.NewSyscallError("clock_gettime", err))
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// memory is the anonymous memory of processes in bytes: what they allocated. A
// page that several of them share counts once. What the kernel keeps for their
// sockets is not in it.
func memory(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		bytes, err := anonymous(rollup)
		if err != nil {
			return 0, fmt.Errorf("process %d: %w", pid, err)
		}
		sum += bytes
	}
	return sum, nil
}

// anonymous reads Pss_Anon from a smaps_rollup (man 5 proc_pid_smaps).
func anonymous(rollup []byte) (int64, error) {
	for line := range bytes.Lines(rollup) {
		var kib int64
		if n, _ := fmt.Sscanf(string(line), "Pss_Anon: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("no Pss_Anon in smaps_rollup; it needs Linux 5.4")
}

// children returns the processes that a process has started.
func children(pid int) ([]int, error) {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(list)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids = append(pids, child)
	}
	return pids, nil
}
