package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/master/reexec"
	"golang.org/x/sys/unix"
)

// playInit plays process 1: it starts workers that leave orphans behind and end with a status
// of their own, and says what became of both.
func playInit() int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		return 1
	}
	go ReapOrphans(context.Background())
	for i := range 50 {
		// The orphan is there before the worker ends, and ends after it.
		p, err := StartProcess(Spec{Command: []string{"sh", "-c", "(sleep 0.01; exit 1) & exit 7"}})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		if exit := p.Wait(); exit.Code != 7 {
			fmt.Printf("worker %d: %v\n", i, exit)
			return 1
		}
	}
	for range 20 {
		if err := dryRun(); !errors.Is(err, reexec.ErrDryRun) || !strings.Contains(err.Error(), "ended with status 2") {
			fmt.Println("dry run:", err)
			return 1
		}
	}
	left := ""
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		left = ""
		lists, _ := filepath.Glob("/proc/self/task/*/children")
		for _, list := range lists {
			text, _ := os.ReadFile(list)
			left += string(text)
		}
		if strings.TrimSpace(left) == "" {
			return 0
		}
	}
	fmt.Println("children that are left:", left)
	return 1
}

// dryRun tries a program that leaves an orphan behind and fails.
func dryRun() error {
	reexec.Lock.Lock()
	r, err := reexec.NewDryRun("").DryRun(reexec.Program{Path: "/bin/sh", Args: []string{"sh", "-c", "(sleep 0.01; exit 1) & exit 2"}})
	reexec.Lock.Unlock()
	if err != nil {
		return err
	}
	return r.Wait(context.Background())
}

// TestReapOrphans: orphans do not stay, and the ends of workers, and of a program that is tried for an upgrade, are reported
// to those who wait for them.
func TestReapOrphans(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), testRole+"=init", "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestStartThatTakesLong: while a program is being started, however long that takes, orphans are left alone, since one of them
// may be its process; and neither the end of a worker nor ReapOrphans waits for it.
func TestStartThatTakesLong(t *testing.T) {
	ours.startBegins()
	p, err := StartProcess(Spec{Command: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	stranger := exec.Command("true")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	for unix.Waitid(unix.P_PID, stranger.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	if exit := p.Wait(); exit != (Exit{}) {
		t.Error(exit)
	}
	reapOrphans()
	if len(ours.again) != 0 {
		t.Error("orphans are looked for although the start has not ended")
	}
	ours.startEnds(0)
	select {
	case <-ours.again:
	default:
		t.Error("nobody looks for orphans when the start has ended")
	}
	if err := stranger.Wait(); err != nil {
		t.Errorf("the process that was left alone: %v", err)
	}
}
