package supervisor

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ReapOrphans waits for the processes whose parents have ended before them, until ctx ends, so
// that none stays a zombie. They become children of process 1, which handfast is in a
// container, or of a subreaper (man 2 prctl).
func ReapOrphans(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		reapOrphans()
		select {
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
}

// ours are the children that somebody else waits for: those of StartProcess. Who starts one
// holds the lock until it is here.
var ours = struct {
	sync.Mutex
	pids map[int]struct{}
}{pids: make(map[int]struct{})}

func reapOrphans() {
	ours.Lock()
	defer ours.Unlock()
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		text, _ := os.ReadFile(list) // of a thread that may have ended
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if _, known := ours.pids[pid]; err == nil && !known {
				unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
	}
}
