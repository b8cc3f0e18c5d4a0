package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

const (
	// previous is the commit that is upgraded from; HANDFAST_TEST_PREVIOUS names another one, such as a tag.
	previous = "HEAD~1"
	// unreadable is a commit whose state today's program does not read: its bundles had no versions of parts.
	unreadable = "3e9fbf140579e976d5735046b2f768ba31536d8c"
)

// programOf builds the program of a commit. The test is skipped if there is no such commit, as in a shallow clone.
func programOf(t *testing.T, commit string) string {
	t.Helper()
	itself(t) // before it builds for long what -short leaves out
	text, err := exec.Command("git", "rev-parse", "--verify", "--quiet", "--end-of-options", commit+"^{commit}").Output()
	if err != nil {
		t.Skipf("needs the commit %s of a clone with its history (git fetch --unshallow): %v", commit, err)
	}
	return trial.BuildAt(t, strings.TrimSpace(string(text)), "github.com/handfast/handfast/cmd/handfast")
}

// isDeliberate tells whether a program that was tried has refused what another one left, by its version. Whatever else
// it may have said is a state that has changed without one.
func isDeliberate(refusal string) bool {
	return strings.Contains(refusal, "stop it and start this one") && (strings.Contains(refusal, ", and this one reads version ") ||
		strings.Contains(refusal, "leaves its state in format ") || strings.Contains(refusal, ", of which this one knows nothing"))
}

// upgradesFrom replaces a program that runs under load by today's. Either that goes on with everything, or it was refused
// for its version when it was tried, and the old one goes on; it tells which. In both cases no request fails.
func upgradesFrom(t *testing.T, old string, start func(change func(*exec.Cmd)) *instance) (upgraded bool) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "handfast")
	install := func(path string) {
		t.Helper()
		next := program + ".next"
		if err := os.Symlink(path, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, program); err != nil {
			t.Fatal(err)
		}
	}
	install(old)
	b := start(func(cmd *exec.Cmd) { cmd.Path, cmd.Args[0] = program, program })
	before, at := b.workers(2), b.slotsOf(sources(10), 1)
	made, stop := b.load(4, "/", "/sleep/10ms", "/sleep/300ms", "/")
	answered := func(n int64) {
		t.Helper()
		last := made.Load()
		if !eventually(func() bool { return made.Load() >= last+n || t.Failed() }) {
			t.Fatalf("only %d requests were answered", made.Load()-last)
		}
	}
	answered(20)
	install(trial.Build(t, "github.com/handfast/handfast/cmd/handfast"))
	command := b.begin("upgrade")
	<-command.ended
	said := command.String()
	upgraded = command.status == exitOK
	if !upgraded && !isDeliberate(said) {
		t.Errorf("the upgrade has failed for something else than a version: %s", said)
	}
	answered(20)
	if upgraded { // and again, by a program that has taken over from another version
		b.upgrades(1)
		answered(20)
	}
	stop()
	if after := b.workers(2); !slices.Equal(before, after) {
		t.Errorf("workers were %v, are %v", before, after)
	}
	if after := b.slotsOf(sources(10), 1); !maps.Equal(at, after) {
		t.Errorf("clients were in slots %v, are in %v", at, after)
	}
	if s := b.status(); s.PID != b.cmd.Process.Pid || (s.Upgrade.Count > 0) != upgraded || (s.Upgrade.Error == "") != upgraded {
		t.Errorf("status %+v", s.Upgrade)
	}
	return upgraded
}

// TestUpgradeFromPrevious: the program of the commit before is replaced by today's under load, and no request fails. If
// what they leave has changed on purpose, with its version, that was refused when today's was tried, and the
// old one goes on.
func TestUpgradeFromPrevious(t *testing.T) {
	t.Parallel()
	commit := previous
	if other := os.Getenv("HANDFAST_TEST_PREVIOUS"); other != "" {
		commit = other
	}
	old := programOf(t, commit)
	byRoutes(t, func(t *testing.T, _ string) {
		for name, start := range map[string]func(change func(*exec.Cmd)) *instance{
			"native": func(change func(*exec.Cmd)) *instance { return start(t, 2, options{lean: true, change: change}) },
			"node": func(change func(*exec.Cmd)) *instance {
				return startNode(t, 2, plain, nodeOptions{lean: true, change: change})
			},
		} {
			t.Run(name, func(t *testing.T) {
				if !upgradesFrom(t, old, start) {
					t.Logf("%s is refused for its version, and goes on", commit)
				}
			})
		}
	})
}

// TestUpgradeFromUnreadable: a program whose state has another form goes on when today's has refused it.
func TestUpgradeFromUnreadable(t *testing.T) {
	t.Parallel()
	old := programOf(t, unreadable)
	if upgradesFrom(t, old, func(change func(*exec.Cmd)) *instance { return start(t, 2, options{lean: true, change: change}) }) {
		t.Error("it was upgraded")
	}
}
