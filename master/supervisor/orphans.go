package supervisor

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/handfast/handfast/master/reexec"
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
		var later <-chan time.Time
		if !reapOrphans() {
			later = time.After(orphansDelay)
		}
		select {
		case <-ended:
		case <-ours.again:
		case <-later:
		case <-ctx.Done():
			return
		}
	}
}

// orphansDelay is the time until orphans are looked for again that had to be left alone.
const orphansDelay = 200 * time.Millisecond

// children are processes whose end somebody waits for, so that others leave them alone.
type children struct {
	again chan struct{} // of capacity 1: orphans were left alone, and need not be any more

	mu       sync.Mutex // held for moments only, never while a program is being started
	pids     map[int]struct{}
	starting int  // starts in progress: their child may exist, and is not in pids yet
	skipped  bool // orphans were left alone for that
}

// ours are the children of StartProcess.
var ours = children{again: make(chan struct{}, 1), pids: make(map[int]struct{})}

// startBegins comes before a start, and startEnds after it: pid is that of the child, 0 if there is none.
func (c *children) startBegins() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting++
}

func (c *children) startEnds(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pid > 0 {
		c.pids[pid] = struct{}{}
	}
	if c.starting--; c.starting == 0 && c.skipped {
		c.skipped = false
		select {
		case c.again <- struct{}{}:
		default:
		}
	}
}

// add adds a child that the program before has started.
func (c *children) add(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pids[pid] = struct{}{}
}

// reap reaps a child that has ended. Until that its number is not another's.
func (c *children) reap(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reap(pid)
	delete(c.pids, pid)
}

// reapOrphans reaps the children of this process that have ended and are not ours. It returns false if it had to leave
// them alone.
func reapOrphans() bool {
	pids := childrenOfAllThreads()
	ours.mu.Lock()
	defer ours.mu.Unlock()
	if ours.starting > 0 || reexec.DryRunUnderWay() { // one of these may be what is being started, or tried
		ours.skipped = ours.starting > 0
		return false
	}
	for _, pid := range pids {
		if _, known := ours.pids[pid]; !known {
			reap(pid)
		}
	}
	return true
}

// childrenOfAllThreads lists the children of this process (man 5 proc_tid_children).
func childrenOfAllThreads() (pids []int) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		text, _ := os.ReadFile(list) // of a thread that may have ended
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// reap reaps a child if it has ended. It does not wait.
func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != unix.EINTR {
			return
		}
	}
}
