package pgroup

import (
	"bufio"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMemory: what a parent and its two children share counts once; by the resident pages of man 5 proc_pid_statm it would count three times.
func TestMemory(t *testing.T) {
	const size = 48 << 20
	cmd := exec.Command("/usr/bin/python3", "-c", `
import os, time
shared = b'x' * (48 << 20)
for _ in range(2):
    if os.fork() == 0:
        time.sleep(1000)
print('ready', flush=True)
time.sleep(1000)
`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Skip(err)
	}
	pgid := cmd.Process.Pid
	t.Cleanup(func() { unix.Kill(-pgid, unix.SIGKILL); cmd.Wait() })
	bufio.NewReader(out).ReadString('\n')
	if n := Memory(pgid); n < size || n >= 2*size {
		t.Errorf("%d MiB", n>>20)
	}
	// The kernel counts resident pages for each thread or processor first, so that less may be told (man 5 proc_pid_statm: "inaccurate").
	if own, all := proportional(os.Getpid()), resident(os.Getpid()); own == 0 || own > 2*all || all > 4<<30 {
		t.Errorf("this process: proportional %d, resident %d", own, all)
	}
	unix.Kill(-pgid, unix.SIGKILL)
	cmd.Wait()
	if n := Memory(pgid); n != 0 {
		t.Errorf("%d bytes of nobody", n)
	}
}
