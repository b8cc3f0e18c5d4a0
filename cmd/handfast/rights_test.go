package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/master"
)

// nobody is a user that need not exist.
const nobody = 54321

// asRoot skips a test that only root can do.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("must run as root")
	}
	t.Skip("only root can run workers as somebody else")
}

// everybodys makes a copy of a program that everybody may run.
func everybodys(t *testing.T, of string) (path string) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(of)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "worker")
	program(t, path, content, 0o755)
	return path
}

// TestRights: workers run as whom the flags name, by each route, also after a reload; the
// master stays who it is.
func TestRights(t *testing.T) {
	t.Parallel()
	asRoot(t)
	for _, route := range routeWords[1:] {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			b := start(t, 2, options{
				variant: variant{route: route},
				flags:   []string{"--user", fmt.Sprint(nobody), "--group", fmt.Sprint(nobody + 1), "--no-new-privs"},
				change: func(cmd *exec.Cmd) {
					last := len(cmd.Args) - 2 // before "http"
					cmd.Args[last] = everybodys(t, cmd.Args[last])
				},
			})
			check := func(slot int) (pid int) {
				pid = b.mustGet(sourceIn(slot, 2, 0), "/").pid
				for name, want := range map[string]string{
					"Uid": strings.TrimSpace(strings.Repeat(fmt.Sprintf("%d ", nobody), 4)),
					"Gid": strings.TrimSpace(strings.Repeat(fmt.Sprintf("%d ", nobody+1), 4)), "Groups": fmt.Sprint(nobody + 1), "NoNewPrivs": "1",
				} {
					if got := statusOf(t, pid, name); got != want {
						t.Errorf("slot %d: %s is %q, want %q", slot, name, got, want)
					}
				}
				return pid
			}
			before := check(0)
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			if check(0) == before {
				t.Error("not another worker")
			}
			check(1)
			if got := statusOf(t, b.cmd.Process.Pid, "NoNewPrivs"); got != "0" {
				t.Errorf("the master's NoNewPrivs is %s", got)
			}
		})
	}
}

// statusOf reads a line of /proc/PID/status, with single spaces.
func statusOf(t *testing.T, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if key, value, _ := strings.Cut(line, ":"); key == name {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	t.Fatalf("no %s in %s", name, text)
	return ""
}

// TestRightsOfNames: a user's own group and home are taken with the name.
func TestRightsOfNames(t *testing.T) {
	t.Parallel()
	asRoot(t)
	b := start(t, 1, options{flags: []string{"--user", "root"}})
	env := strings.Split(b.mustGet(source(0), "/env").body, "\n")
	for _, want := range []string{"USER=root", "LOGNAME=root", "HOME=/root"} {
		if !slices.Contains(env, want) {
			t.Errorf("the environment has no %s", want)
		}
	}
	for flags, says := range map[string]string{
		"--user no-such-user":   `--user "no-such-user": user: unknown user`,
		"--group no-such-group": `--group "no-such-group": group: unknown group`,
	} {
		if out, status := runCheck(t, strings.Fields(flags)...); status != exitUsage || !strings.Contains(out, says) {
			t.Errorf("%s: status %d: %s", flags, status, out)
		}
	}
}

// TestFewRights: a master whose workers are another user's needs four of root's rights, by either route, and goes on to start,
// reload, kill and be replaced with these alone. (--worker-link any takes two more: the unit in examples/systemd says which.)
func TestFewRights(t *testing.T) {
	t.Parallel()
	asRoot(t)
	setpriv := trial.Need(t, "setpriv", "util-linux")
	for _, route := range []string{"kernel", "master"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			b := start(t, 1, options{
				variant: variant{route: route},
				flags:   []string{"--user", fmt.Sprint(nobody), "--worker-link", "native", "--kill-timeout", "1s"},
				change: func(cmd *exec.Cmd) {
					last := len(cmd.Args) - 2 // before "http"
					cmd.Args[last] = everybodys(t, cmd.Args[last])
					few := []string{setpriv, "--bounding-set=-all,+setuid,+setgid,+kill,+net_bind_service", "--inh-caps=-all", "--no-new-privs", cmd.Path}
					cmd.Path, cmd.Args = setpriv, append(few, cmd.Args[1:]...)
				},
			})
			if got := strings.TrimLeft(statusOf(t, b.cmd.Process.Pid, "CapEff"), "0"); got != "4e0" {
				t.Errorf("the master has capabilities %s, want those of setuid, setgid, kill and net_bind_service", got)
			}
			first := b.mustGet(source(0), "/").pid
			if got := strings.Fields(statusOf(t, first, "Uid"))[0]; got != fmt.Sprint(nobody) {
				t.Errorf("the worker's user is %s", got)
			}
			b.tell("reload")
			b.tell("upgrade")
			if second := b.mustGet(source(0), "/").pid; second == first {
				t.Error("the worker was not replaced")
			}
		})
	}
}

// TestDropRoot: the master binds as root, and then neither it nor its workers are. It may still add
// slots, reload, be asked, and be replaced. A worker of another user than the master cannot ask it.
func TestDropRoot(t *testing.T) {
	t.Parallel()
	asRoot(t)
	program := ""
	b := start(t, 1, options{
		variant: variant{route: "kernel"},
		flags:   []string{"--user", fmt.Sprint(nobody), "--drop-root"},
		change: func(cmd *exec.Cmd) {
			program = everybodys(t, cmd.Path)
			cmd.Path, cmd.Args[0] = program, program
			last := len(cmd.Args) - 2 // before "http"
			cmd.Args[last] = everybodys(t, cmd.Args[last])
		},
	})
	is := func(pid int, user string) {
		t.Helper()
		for _, name := range []string{"Uid", "Gid"} {
			if got, want := statusOf(t, pid, name), strings.TrimSpace(strings.Repeat(user+" ", 4)); got != want {
				t.Errorf("%s of process %d is %s, want %s", name, pid, got, want)
			}
		}
		if got := statusOf(t, pid, "CapEff"); strings.Trim(got, "0") != "" {
			t.Errorf("process %d has capabilities %s", pid, got)
		}
	}
	is(b.cmd.Process.Pid, fmt.Sprint(nobody))
	is(b.mustGet(source(0), "/").pid, fmt.Sprint(nobody))
	b.tell("scale", "3")
	b.awaitStatus("three slots", func(s *master.Status) bool { return s.Ready && len(s.Slots) == 3 })
	b.tell("reload")
	b.tell("upgrade")
	is(b.cmd.Process.Pid, fmt.Sprint(nobody))
	for slot := range 3 {
		is(b.mustGet(sourceIn(slot, 3, 0), "/").pid, fmt.Sprint(nobody))
	}
	stranger := exec.Command(program, "status", "--admin", b.admin)
	stranger.Env = append(os.Environ(), testRole+"=1")
	stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody + 1, Gid: nobody + 1}}
	os.Chmod(filepath.Dir(b.admin), 0o755)
	if out, err := stranger.CombinedOutput(); err == nil || !strings.Contains(string(out), "belongs to another user") {
		t.Errorf("another user asks: %v, %s", err, out)
	}
}
