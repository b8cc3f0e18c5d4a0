package openconns

import (
	"os"
	"strconv"
	"strings"
)

// relation says where a process belongs (/proc/PID/stat).
type relation struct{ parent, group int }

// family returns the processes of a group, and the descendants of its first one.
func family(first int) (pids []int) {
	all := processes()
	belongs := make(map[int]bool, len(all))
	var is func(pid, depth int) bool
	is = func(pid, depth int) bool {
		if known, ok := belongs[pid]; ok {
			return known
		}
		r, exists := all[pid]
		yes := pid == first || exists && r.group == first || exists && r.parent > 1 && depth < len(all) && is(r.parent, depth+1)
		belongs[pid] = yes
		return yes
	}
	for pid := range all {
		if is(pid, 0) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processes returns all processes that can be seen.
func processes() map[int]relation {
	folder, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(-1)
	all := make(map[int]relation)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // it has ended
		}
		if r, ok := parseStat(string(text)); ok {
			all[pid] = r
		}
	}
	return all
}

// parseStat reads a line such as "12 (a name) S 1 12 …" (man 5 proc). The name may contain
// anything.
func parseStat(line string) (r relation, ok bool) {
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(fields) < 3 {
		return r, false
	}
	var err1, err2 error
	r.parent, err1 = strconv.Atoi(fields[1])
	r.group, err2 = strconv.Atoi(fields[2])
	return r, err1 == nil && err2 == nil
}

// socket returns the inode in a link such as socket:[123].
func socket(target string) (inode uint64, ok bool) {
	text, ok := strings.CutPrefix(target, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
	return inode, err == nil
}
