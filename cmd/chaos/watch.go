package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/chaos/history"
)

// watchEvery is how often the master's children are looked for.
const watchEvery = 40 * time.Millisecond

// watcher knows the workers by /proc, without asking the master.
type watcher struct {
	*recorder
	master int
	end    chan struct{}
	ended  chan struct{}

	mu   sync.Mutex
	seen []*process
}

// process is a worker. Its pidfd is open until it has gone.
type process struct {
	history.Process
	pidfd int
}

func newWatcher(r *recorder, master int) *watcher {
	w := &watcher{recorder: r, master: master, end: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	return w
}

func (w *watcher) run() {
	defer close(w.ended)
	for {
		w.look()
		w.wait()
		select {
		case <-w.end:
			return
		default:
		}
	}
}

// stop ends it, and returns all processes.
func (w *watcher) stop() (all []history.Process) {
	close(w.end)
	<-w.ended
	for _, p := range w.seen {
		if p.Gone == 0 {
			unix.Close(p.pidfd)
		}
		all = append(all, p.Process)
	}
	return all
}

// look notes the master's new children.
func (w *watcher) look() {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", w.master))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for field := range bytes.FieldsSeq(text) {
			if pid, err := strconv.Atoi(string(field)); err == nil {
				w.meet(pid)
			}
		}
	}
}

func (w *watcher) meet(pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.seen {
		if p.PID == pid && p.Gone == 0 {
			return
		}
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	slot, generation := number(environ, "HANDFAST_SLOT="), number(environ, "HANDFAST_GENERATION=")
	if slot < 0 || generation < 0 { // none yet, or the next version of handfast, which is tried
		unix.Close(pidfd)
		return
	}
	w.seen = append(w.seen, &process{history.Process{PID: pid, Slot: slot, Generation: generation, Seen: w.now()}, pidfd})
}

// number is that of a variable, or -1.
func number(environ []byte, name string) int {
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if value, found := bytes.CutPrefix(entry, []byte(name)); found {
			if n, err := strconv.Atoi(string(value)); err == nil {
				return n
			}
		}
	}
	return -1
}

// wait notes who ends before it is time to look again.
func (w *watcher) wait() {
	var fds []unix.PollFd
	alive := w.alive()
	for _, p := range alive {
		fds = append(fds, unix.PollFd{Fd: int32(p.pidfd), Events: unix.POLLIN})
	}
	until := time.Now().Add(watchEvery)
	unix.Poll(fds, int(watchEvery.Milliseconds()))
	w.mu.Lock()
	for i, p := range alive {
		if fds[i].Revents != 0 {
			p.Gone = w.now()
			unix.Close(p.pidfd)
		}
	}
	w.mu.Unlock()
	time.Sleep(time.Until(until))
}

// alive are the workers that are there, by slot and age.
func (w *watcher) alive() (all []*process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.seen {
		if p.Gone == 0 {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b *process) int { return cmp.Compare(a.Slot, b.Slot) })
	return all
}

// signal sends a signal to a worker that may have gone.
func (w *watcher) signal(p *process, sig unix.Signal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.Gone == 0 {
		unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	}
}
