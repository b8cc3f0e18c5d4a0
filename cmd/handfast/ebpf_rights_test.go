package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEBPFRights: a master that is not root counts with CAP_BPF alone, or with CAP_PERFMON beside it, as a service manager gives them, and
// its workers get neither. It counts nothing, and says so, without.
func TestEBPFRights(t *testing.T) {
	t.Parallel()
	asRoot(t)
	if err := ebpfAuto.may(); err != nil {
		t.Skip(err)
	}
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip(err)
	}
	as := func(capabilities string) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			admin := cmd.Args[slices.Index(cmd.Args, "--admin")+1]
			if err := os.Chown(filepath.Dir(admin), nobody, nobody); err != nil {
				t.Fatal(err)
			}
			last := len(cmd.Args) - 2 // before "http"
			cmd.Args[last] = everybodys(t, cmd.Args[last])
			cmd.Args[0] = everybodys(t, cmd.Path)
			cmd.Args = append([]string{setpriv, fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups",
				"--inh-caps=" + capabilities, "--ambient-caps=" + capabilities}, cmd.Args...)
			cmd.Path = setpriv
		}
	}
	with := func(t *testing.T, capabilities string, rights uint64) *instance {
		b := startKernel(t, 2, options{change: as(capabilities), flags: []string{"--ebpf", "on"}})
		b.await("the kernel counts what comes to slots")
		a := b.mustGet(sourceIn(1, 2, 0), "/")
		if s := b.status(); s.Slots[1].Handshakes == nil || *s.Slots[1].Handshakes != 1 {
			t.Errorf("%+v", s.Slots[1])
		}
		var has uint64
		if fmt.Sscanf(statusOf(t, b.cmd.Process.Pid, "CapEff"), "%x", &has); has != rights {
			t.Errorf("the master has capabilities %#x, want %#x", has, rights)
		}
		for _, set := range []string{"CapEff", "CapPrm", "CapAmb"} {
			if got := statusOf(t, a.pid, set); strings.Trim(got, "0") != "" {
				t.Errorf("a worker's %s are %s", set, got)
			}
		}
		return b
	}
	t.Run("both", func(t *testing.T) {
		t.Parallel()
		with(t, "+bpf,+perfmon", 1<<unix.CAP_BPF|1<<unix.CAP_PERFMON)
	})
	t.Run("with", func(t *testing.T) {
		t.Parallel()
		b := with(t, "+bpf", 1<<unix.CAP_BPF)
		b.tell("upgrade")
		b.mustGet(sourceIn(1, 2, 0), "/")
		if s := b.status(); s.Slots[1].Handshakes == nil || *s.Slots[1].Handshakes != 2 {
			t.Errorf("after an upgrade: %+v", s.Slots[1])
		}
	})
	t.Run("without", func(t *testing.T) {
		t.Parallel()
		b := startKernel(t, 2, options{change: as("-all")})
		if line := b.await("nobody counts what comes to slots: no eBPF"); !strings.Contains(line.text, "CAP_BPF") {
			t.Error(line.text)
		}
		b.mustGet(source(0), "/")
		if s := b.status(); s.Slots[0].Handshakes != nil {
			t.Errorf("%+v", s.Slots[0])
		}
	})
}
