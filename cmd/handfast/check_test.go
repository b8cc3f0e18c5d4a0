package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// answerOf is what check says of one thing.
func answerOf(t *testing.T, out, what string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(what) + ` +(.*)$`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("nothing of %s in %s", what, out)
	}
	return m[1]
}

// Row C8: TestCheckIsRun: what check refuses run refuses, all of it at once; and what check
// lets pass run does.
func TestCheckIsRun(t *testing.T) {
	dir := inRuntimeDirectory(t)
	b := start(t, 1, options{noAdmin: true})
	pid := fmt.Sprintf("pid %d", b.cmd.Process.Pid)
	var strangers [2]string
	for i := range strangers {
		stranger, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer stranger.Close()
		strangers[i] = stranger.Addr().String()
	}
	taken, admin := strangers[0], strangers[1]
	out, status := runCheck(t, "--listen", b.addr, "--listen", taken, "--admin", admin, "--access-log", "/nowhere/access.log", "--", "no-such-program")
	if status != exitFailure {
		t.Errorf("status %d: %s", status, out)
	}
	for what, says := range map[string][]string{
		"--listen " + b.addr:                   {pid, "handfast stop --name handfast", "handfast upgrade"},
		"--listen " + taken:                    {fmt.Sprintf("pid %d", os.Getpid())},
		"--admin " + admin:                     {fmt.Sprintf("pid %d", os.Getpid())},
		"--name handfast":                      {"in use by " + pid, "--admin off"},
		"--access-log /nowhere/access.log":     {"no such file"},
		"command":                              {"not found"},
		"admin: [" + dir + "/handfast.sock, '": {""},
	} {
		if strings.HasPrefix(what, "admin") {
			if !strings.Contains(out, what) {
				t.Errorf("no %q in %s", what, out)
			}
			continue
		}
		answer := answerOf(t, out, what)
		for _, want := range says {
			if !strings.Contains(answer, want) {
				t.Errorf("%s: no %q in %s", what, want, answer)
			}
		}
		if strings.Contains(answer, "kill") && strings.Contains(answer, pid) {
			t.Errorf("to kill a handfast that runs: %s", answer)
		}
	}
	if !strings.Contains(out, errLacking.Error()) {
		t.Errorf("things are missing, and in the end it says %s", out)
	}
	for _, flags := range []string{"--name a --listen " + b.addr, "--name handfast --listen 127.0.0.1:0"} {
		out, status := runCheck(t, append(strings.Fields(flags), "--", trial.Build(t, testWorker))...)
		if status != exitFailure || !strings.Contains(out, errTaken.Error()) || strings.Contains(out, errLacking.Error()) {
			t.Errorf("%s: status %d: %s", flags, status, out)
		}
	}
	// A Unix socket, too, is only in use; and what is named twice is nobody else's.
	socket := filepath.Join(dir, "app.socket")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	out, status = runCheck(t, "--name", "a", "--listen", "unix:"+socket, "--behind-proxy", "--", trial.Build(t, testWorker))
	if want := fmt.Sprintf("%s is in use by pid %d; stop that, or listen at another path", socket, os.Getpid()); status != exitFailure || answerOf(t, out, "--listen unix:"+socket) != want || !strings.Contains(out, errTaken.Error()) {
		t.Errorf("status %d: %s", status, out)
	}
	for _, flags := range []string{"--listen 127.0.0.1:7 --listen 127.0.0.1:7", "--listen :7 --admin 127.0.0.1:7", "--admin 127.0.0.1:7 --admin 127.0.0.1:7", "--admin /run/a --listen unix:/run/a"} {
		for _, command := range []string{"check", "run"} {
			text := begin(t, slices.Concat([]string{command, "--name", "a"}, strings.Fields(flags), []string{"--", "true"})...).ends(exitUsage)
			if !strings.Contains(text, "it is named twice") && !strings.Contains(text, "it is the same ") {
				t.Errorf("%s %s: %s", command, flags, text)
			}
		}
	}
	// Each by itself, in run.
	for _, c := range []struct{ flags, says string }{
		{"--name a --listen " + b.addr + " --route master", "handfast stop --name handfast ends it"},
		{"--name a --listen " + b.addr + " --route kernel", "handfast stop --name handfast ends it"},
		{"--name a --listen " + taken + " --route master", fmt.Sprintf("pid %d", os.Getpid())},
		{"--name a --listen " + taken + " --route kernel", fmt.Sprintf("pid %d", os.Getpid())},
		{"--name a --listen 127.0.0.1:0 --access-log /nowhere/access.log", "no such file"},
	} {
		text := begin(t, append(append([]string{"run"}, strings.Fields(c.flags)...), "--", "true")...).ends(exitFailure)
		if !strings.Contains(text, c.says) || !strings.Contains(text, "no such file") && !strings.Contains(text, "address already in use") {
			t.Errorf("%s: no %q in %s", c.flags, c.says, text)
		}
	}
	if out, status := runCheck(t, "--name", "a", "--listen", "127.0.0.1:0", "--behind-proxy", "--hand-back=false", "--", trial.Build(t, testWorker)); status != exitOK ||
		!strings.Contains(answerOf(t, out, "run says"), "have it choose slots (--slot-address)") {
		t.Errorf("status %d: %s", status, out)
	}
	log := filepath.Join(t.TempDir(), "access.log")
	if out, status := runCheck(t, "--name", "a", "--listen", "127.0.0.1:0", "--access-log", log, "--", trial.Build(t, testWorker)); status != exitOK {
		t.Errorf("status %d: %s", status, out)
	} else if answer := answerOf(t, out, "run takes"); !strings.Contains(answer, "--route master, --worker-link native; the kernel cannot: with --access-log") {
		t.Error(answer)
	}
	if _, err := os.Stat(log); err == nil {
		t.Error("check has made the access log")
	}
	for _, c := range []struct{ listens, says string }{
		{":7 127.0.0.1:7", "is the same port as :7"}, {"127.0.0.1:7 127.0.0.1:7", "is named twice"}, {"0.0.0.0:7 127.0.0.1:7", "is the same port"},
		{"unix:/a unix:/a", "is named twice"}, {"unix:/a unix://a?mode=0600", "is the same path as unix:/a"}, {"unix:/a unix:/b", ""}, {"unix:/a :7", ""},
		{"[fe80::1%lo]:7 [fe80::1%lo]:7", "is named twice"}, {"[fe80::1%lo]:7 [fe80::1%eth0]:7", ""}, {":7 [fe80::1%lo]:7", "is the same port"},
		{"[::]:7 0.0.0.0:7", ""}, {"127.0.0.1:7 127.0.0.2:7", ""}, {":7 :8", ""}, {"127.0.0.1:0 127.0.0.1:0", ""},
	} {
		listens := strings.Fields(c.listens)
		if err := twice(listens[1], listens[:1]); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.listens, err, c.says)
		}
	}
	if out, status := runCheck(t, "--name", "a", "--listen", "127.0.0.1:0", "--route", "kernel", "--behind-proxy", "--", "true"); status != exitUsage || !strings.Contains(out, "use --route master") || !strings.Contains(out, "backlog") {
		t.Errorf("status %d: %s", status, out)
	}
}

// Row C8: TestCheckRights: what is asked for another user is tried as that one, and a port that may
// not be bound is named as run names it.
func TestCheckRights(t *testing.T) {
	asRoot(t)
	inRuntimeDirectory(t)
	mine := filepath.Join(t.TempDir(), "mine")
	program(t, mine, []byte("#!/bin/sh\n"), 0o700)
	out, status := runCheck(t, "--listen", "127.0.0.1:0", "--user", fmt.Sprint(nobody), "--worker-link", "native", "--", mine)
	if answer := answerOf(t, out, "command"); status != exitFailure || !strings.Contains(answer, fmt.Sprintf("user %d", nobody)) || !strings.Contains(answer, "chmod") {
		t.Errorf("status %d: %s", status, out)
	}
	if out, _ := runCheck(t, "--listen", "127.0.0.1:0", "--user", fmt.Sprint(nobody), "--worker-link", "native", "--", "true"); answerOf(t, out, "command") != "ok" {
		t.Error(out)
	}
	// As somebody who may not: no port below 1024, no directory for the socket.
	self := everybodys(t, trial.Build(t, "github.com/handfast/handfast/cmd/handfast"))
	both := map[string]string{}
	for _, command := range []string{"check", "run"} {
		both[command] = asUser(t, nobody, self, command, "--listen", "127.0.0.1:7", "--", "true")
		if !strings.Contains(both[command], "permission denied: run as root, or with CAP_NET_BIND_SERVICE") {
			t.Errorf("%s: %s", command, both[command])
		}
	}
	if !strings.Contains(both["check"], "note: run goes on without a socket") || !strings.Contains(both["run"], "no admin socket") {
		t.Errorf("%v", both)
	}
}

// Row B5: TestCheckSeed: that anybody can compute who shares a slot is said where it may matter.
func TestCheckSeed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		flags string
		noted bool
	}{
		{"--listen 127.0.0.1:0", false}, {"--listen 10.1.2.3:0", false}, {"--listen :0", true}, {"--listen 192.0.2.1:0", true},
		{"--listen :0 --hash-seed 7", false},
	} {
		out, status := runCheck(t, strings.Fields(c.flags)...)
		if status == exitUsage || strings.Contains(out, "note: anybody can compute") != c.noted {
			t.Errorf("%s: status %d: %s", c.flags, status, out)
		}
	}
}

// asUser runs a command as another user, without a directory of its own, and returns what it says.
func asUser(t *testing.T, uid uint32, path string, args ...string) string {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY=", "XDG_RUNTIME_DIR=/nowhere", "HANDFAST_ADMIN=")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("%q succeeds", args)
	}
	return string(out)
}

// TestCheckSlotAddress: check says whose which address is, and which one this machine does not have.
func TestCheckSlotAddress(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"--listen 127.0.0.1:0 --slot-address 127.77.0.0/24 --workers 3":  "\n--slot-address 127.77.0.0/24         ok, slot 0 is 127.77.0.0, slot 2 is 127.77.0.2\n",
		"--listen :0 --slot-address 192.0.2.0/24 --workers 3":            "\n--slot-address 192.0.2.0/24          this machine does not have slot 0's address 192.0.2.0: as root, ip route add local 192.0.2.0/24 dev lo",
		"--listen :0 --slot-address 192.0.2.0/24 --workers 3 --freebind": "\n--slot-address 192.0.2.0/24          note: this machine does not have slot 0's address 192.0.2.0",
	} {
		var out fdtest.Log
		run(t.Context(), strings.Fields("handfast check --admin off "+args), &out, &out)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %s, want %q", args, &out, want)
		}
	}
}

// TestCheckEmptyVariables: a variable that is set to nothing is as none, also where a flag may be repeated.
func TestCheckEmptyVariables(t *testing.T) {
	dir := inRuntimeDirectory(t)
	before, _ := runCheck(t, "--name", "a", "--listen", "127.0.0.1:0")
	for _, f := range runFlags() {
		if isList(f) {
			t.Setenv(env(f.Names()[0])[0], "")
		}
	}
	out, status := runCheck(t, "--name", "a", "--listen", "127.0.0.1:0")
	if out != before || !strings.Contains(out, "admin: ["+dir+"/a.sock] # default") {
		t.Errorf("status %d: %s\nwithout variables\n%s", status, out, before)
	}
	file := filepath.Join(dir, "handfast.yaml")
	if err := os.WriteFile(file, []byte("listen: ['127.0.0.1:0']\nadmin: 'off'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, status = runCheck(t, "--config", file)
	if !strings.Contains(out, "listen: ['127.0.0.1:0'] # "+file) || !strings.Contains(out, "admin: [off] # "+file) {
		t.Errorf("status %d: %s", status, out)
	}
}
