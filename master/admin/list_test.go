package admin

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// named returns what was found by a name; nil: nothing was.
func named(found []Instance, name string) *Instance {
	if i := slices.IndexFunc(found, func(i Instance) bool { return i.Name == name }); i >= 0 {
		return &found[i]
	}
	return nil
}

// TestList: who answers is listed with what it answers, who does not with its process, and what a killed one has left as that. What is
// no socket is nothing.
func TestList(t *testing.T) {
	fdtest.NoLeaks(t)
	dir := filepath.Dir(socket(t).Address)
	t.Setenv("RUNTIME_DIRECTORY", dir)
	if found := List(t.Context()); len(found) > 0 {
		t.Errorf("in an empty directory: %+v", found)
	}
	_, stop := serve(t, newFake(1), socketIn(dir, "web"))
	defer stop()
	abandon(t, socketIn(dir, "killed"))
	if err := os.WriteFile(filepath.Join(dir, "file"+suffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("unix", filepath.Join(dir, "silent"+suffix))
	fdtest.Check(t, err)
	defer silent.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	found := List(ctx)
	if len(found) != 3 {
		t.Fatalf("found %+v", found)
	}
	if w := named(found, "web"); w.Status == nil || w.Status.Name != "fake" || w.Error != "" || w.PID != os.Getpid() || *w.UID != os.Getuid() || w.Admin != dir+"/web.sock" {
		t.Errorf("who answers: %+v", w)
	}
	if s := named(found, "silent"); s.Status != nil || !strings.Contains(s.Error, "not answered") || s.PID != os.Getpid() || s.Left {
		t.Errorf("who does not answer: %+v", s)
	}
	if k := named(found, "killed"); k.Status != nil || !k.Left || k.PID != 0 || k.UID != nil {
		t.Errorf("who was killed: %+v", k)
	}
}

// TestListOfAll: root finds what other users run, also where it would not listen itself.
func TestListOfAll(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("is for root")
	}
	fdtest.NoLeaks(t)
	const somebody = 12345
	tmp := filepath.Dir(socket(t).Address)
	t.Setenv("RUNTIME_DIRECTORY", "")
	t.Setenv("TMPDIR", tmp)
	dir := filepath.Join(tmp, "handfast-12345")
	fdtest.Check(t, os.Mkdir(dir, 0o700))
	_, stop := serve(t, newFake(1), socketIn(dir, "theirs"))
	defer stop()
	fdtest.Check(t, os.Chown(dir, somebody, somebody))
	if f := named(List(t.Context()), "theirs"); f == nil || f.Status == nil {
		t.Errorf("found %+v", f)
	}
}
