package pgroup

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// Memory returns how many bytes of memory the processes of a group have together; 0 if that is not known. A page that several processes
// share, as children do with their parent, counts once: what is added is their proportional share (Pss of man 5 proc_pid_smaps). The kernel
// tells that who may look into a process. Of others the resident pages are added (man 5 proc_pid_statm), which counts shared ones again.
// Swapped pages do not count. It takes the kernel about a millisecond for each GiB.
func Memory(pgid int) (sum int64) {
	for _, pid := range Living(pgid) {
		n := proportional(pid)
		if n == 0 {
			n = resident(pid)
		}
		sum += n
	}
	return sum
}

func proportional(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	_, after, _ := bytes.Cut(text, []byte("\nPss:"))
	fields := bytes.Fields(after)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(string(fields[0]), 10, 64)
	return n << 10 // kB, which are 1024 bytes here
}

func resident(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(string(fields[1]), 10, 64)
	return n * int64(os.Getpagesize())
}
