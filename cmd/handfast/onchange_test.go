package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRestartOnChange: workers are replaced when a file changes. If the new ones do not come up the old ones serve on, and the next change is tried. An upgrade
// goes on with that.
func TestRestartOnChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	b := start(t, 2, options{lean: true, worker: []string{"broken", broken}, flags: []string{"--restart-on-change", dir}})
	put(t, dir, "app.py", "1")
	b.await("reload finished")
	put(t, dir, "broken", "")
	if said := b.await("what has changed does not work: the next change is waited for").text; !strings.Contains(said, broken) || !strings.Contains(said, "exited with status 3") {
		t.Error(said)
	}
	if a := b.mustGet(source(1), "/"); a.generation != 2 {
		t.Errorf("%+v", a)
	}
	b.upgrades(1)
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	b.awaitCount("reload finished", 2)
	if a := b.mustGet(source(1), "/"); a.generation != 4 {
		t.Errorf("%+v", a)
	}
	if b.signal(unix.SIGTERM); b.exit() != exitOK {
		t.Error("it has not stopped as it should")
	}
}

// TestRestartOnChangeNone: a path where nothing is.
func TestRestartOnChangeNone(t *testing.T) {
	t.Parallel()
	none := filepath.Join(t.TempDir(), "none")
	if out, status := runCheck(t, "--restart-on-change", none); status != exitFailure || !strings.Contains(out, none+": no such file") {
		t.Errorf("status %d: %s", status, out)
	}
	if out, status := runCheck(t, "--restart-on-change", filepath.Dir(none)); status != exitOK {
		t.Errorf("status %d: %s", status, out)
	}
}
