package listening

import (
	"fmt"
	"os"
	"slices"
	"strconv"
)

// Holder is where a process has a socket open. The zero value: nowhere.
type Holder struct {
	pid, fd int
	socket  uint64
}

// Holds tells whether it still does.
func (h Holder) Holds() bool { return h.socket != 0 && Socket(h.pid, h.fd) == h.socket }

// FindHolder looks below roots, and among them, for another process than this one that has one of the
// sockets open. It fails when none is seen and there are processes that could not be looked into, or not be found.
func FindHolder(roots []int, sockets []uint64) (h Holder, err error) {
	pids, err := descendants(roots)
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue
		}
		entries, readErr := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err == nil {
			err = unlessEnded(pid, readErr)
		}
		for _, entry := range entries {
			fd, _ := strconv.Atoi(entry.Name())
			if socket := Socket(pid, fd); slices.Contains(sockets, socket) {
				return Holder{pid, fd, socket}, nil
			}
		}
	}
	return Holder{}, err
}
