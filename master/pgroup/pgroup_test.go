package pgroup

import (
	"bufio"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// group starts a shell that leads a group, whose two children say their numbers, and that ends then. It
// stays a zombie until the test ends.
func group(t *testing.T, script string) (pgid int, children []int) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pgid = cmd.Process.Pid
	t.Cleanup(func() { unix.Kill(-pgid, unix.SIGKILL); cmd.Wait() })
	lines := bufio.NewScanner(out)
	for len(children) < 2 && lines.Scan() {
		var pid int
		fmt.Sscan(lines.Text(), &pid)
		children = append(children, pid)
	}
	unix.Waitid(unix.P_PID, pgid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	slices.Sort(children)
	return pgid, children
}

// TestLiving: neither the leader, which is a zombie, nor its children that have ended count.
func TestLiving(t *testing.T) {
	pgid, children := group(t, "sleep 1000 & echo $!; sleep 1000 & echo $!")
	if got := Living(pgid); !slices.Equal(got, children) {
		t.Fatalf("%v live, want %v", got, children)
	}
	unix.Kill(children[0], unix.SIGKILL)
	fdtest.Eventually(t, "what is left", func() bool { return slices.Equal(Left(pgid, children), children[1:]) })
	unix.Kill(-pgid, unix.SIGKILL)
	fdtest.Eventually(t, "what is left", func() bool { return len(Left(pgid, children)) == 0 })
	if got := Living(pgid); len(got) > 0 {
		t.Errorf("%v live", got)
	}
}

// TestLivingIsShared: many who ask at once are answered by few surveys, none of which is older than the
// question.
func TestLivingIsShared(t *testing.T) {
	before := begun.Load()
	surveying.Lock()
	var asking sync.WaitGroup
	for range 100 {
		asking.Go(func() {
			if got := Living(unix.Getpgrp()); !slices.Contains(got, unix.Getpid()) {
				t.Errorf("%v live", got)
			}
		})
	}
	time.Sleep(10 * time.Millisecond) // most wait by then
	surveying.Unlock()
	asking.Wait()
	if n := begun.Load() - before; n == 0 || n > 50 {
		t.Errorf("%d surveys for 100 questions", n)
	}
}

// TestLeftFindsNewOnes: what those that were known have started before they ended is found.
func TestLeftFindsNewOnes(t *testing.T) {
	pgid, children := group(t, "sleep 1000 & echo $!; sleep 1000 & echo $!")
	before := children[:1]
	unix.Kill(before[0], unix.SIGKILL)
	fdtest.Eventually(t, "what is left", func() bool { return slices.Equal(Left(pgid, before), children[1:]) })
}

// TestLeftWithoutFiles: at the limit of open files there is no saying that nobody is left.
func TestLeftWithoutFiles(t *testing.T) {
	pgid, children := group(t, "sleep 1000 & echo $!; sleep 1000 & echo $!")
	for name, before := range map[string][]int{"asked before": children, "not asked before": nil} {
		found := make(chan []int, 1)
		fdtest.WithoutFiles(t, func() {
			go func() { found <- Left(pgid, before) }()
			time.Sleep(3 * pause) // it finds nobody
		})
		if got := <-found; !slices.Equal(got, children) {
			t.Errorf("%s: %v are left, want %v", name, got, children)
		}
	}
}
