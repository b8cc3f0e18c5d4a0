package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInit: as process 1 of a container, where it waits for the orphans of its workers, and
// stops when it is told to.
func TestInit(t *testing.T) {
	t.Parallel()
	asRoot(t)
	b := start(t, 2, options{contained: true, change: func(cmd *exec.Cmd) {
		worker := slices.Index(cmd.Args, "--") + 1
		leaves := []string{"sh", "-c", `(sleep 0.05 &); exec "$0" "$@"`}
		cmd.Args = slices.Concat([]string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child"}, cmd.Args[:worker], leaves, cmd.Args[worker:])
		cmd.Path, cmd.Err = exec.LookPath("unshare")
	}})
	master := children(t, b.cmd.Process.Pid)
	if len(master) != 1 {
		t.Fatalf("unshare has children %v", master)
	}
	b.mustGet(source(0), "/")
	if !eventually(func() bool { return len(children(t, master[0])) == 2 }) {
		t.Errorf("process 1 has children %v, want its two workers", children(t, master[0]))
	}
	unix.Kill(master[0], unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}

// children returns the children of a process, also those that have ended and were not waited
// for.
func children(t *testing.T, pid int) (pids []int) {
	t.Helper()
	lists, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for field := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, child)
		}
	}
	return pids
}
