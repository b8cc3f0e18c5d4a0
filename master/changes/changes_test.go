package changes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// within bounds the waits for what should happen soon.
const within = time.Minute

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, paths ...string) *Watcher {
	t.Helper()
	w, err := Open(paths)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want waits for a change.
func (w *Watcher) want(t *testing.T, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if got, err := w.Next(ctx); err != nil || got != path {
		t.Fatalf("changed: %q, %v; want %q", got, err, path)
	}
}

// TestNext: each way to change files, those below directories too, is told once. What comes before shows that what does not count was not told.
func TestNext(t *testing.T) {
	fdtest.NoLeaks(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	put(t, at("app/main.py"), "1")
	put(t, at("app/.git/index"), "1")
	put(t, at("app/deep/er/file"), "1")
	put(t, at("single"), "1")
	put(t, at("releases/1/file"), "1")
	put(t, at("releases/2/file"), "1")
	check(t, os.Symlink("releases/1", at("current")))
	w := open(t, at("app"), at("single"), at("current"))
	w.quiet = 20 * time.Millisecond // all has happened before it is asked
	for _, c := range []struct {
		what string
		does func()
		want string
	}{
		{"written", func() { put(t, at("app/main.py"), "2"); put(t, at("app/main.py"), "3") }, "app/main.py"},
		{"deep below", func() { put(t, at("app/deep/er/file"), "2") }, "app/deep/er/file"},
		{"replaced, as editors do", func() {
			put(t, at("app/.main.py.swp"), "x")
			put(t, at("app/4913"), "x")
			check(t, os.Rename(at("app/main.py"), at("app/main.py~")))
			put(t, at("app/main.py"), "3")
		}, "app/main.py"},
		{"what nobody has written on purpose, and then a file", func() {
			put(t, at("app/.git/index"), "2")
			put(t, at("app/main.py~"), "2")
			put(t, at("app/#main.py#"), "2")
			put(t, at("app/x.pyc"), "2")
			put(t, at("beside"), "2")
			put(t, at("app/main.py"), "4")
		}, "app/main.py"},
		{"a directory that is new", func() { put(t, at("app/new/er/file"), "1") }, "app/new"},
		{"a file in it", func() { put(t, at("app/new/er/file"), "2") }, "app/new/er/file"},
		{"a directory that moves", func() { check(t, os.Rename(at("app/new"), at("app/newer"))) }, "app/new"},
		{"a file in it there", func() { put(t, at("app/newer/er/file"), "2") }, "app/newer/er/file"},
		{"removed", func() { check(t, os.Remove(at("app/newer/er/file"))) }, "app/newer/er/file"},
		{"a single file", func() { put(t, at("single"), "2") }, "single"},
		{"a single file, replaced", func() { put(t, at("next"), "3"); check(t, os.Rename(at("next"), at("single"))) }, "single"},
		{"behind a link", func() { put(t, at("releases/1/file"), "2") }, "releases/1/file"},
		{"the link leads elsewhere", func() {
			check(t, os.Symlink("releases/2", at("next")))
			check(t, os.Rename(at("next"), at("current")))
		}, "current"},
		{"where it leads now, and no longer where it did", func() { put(t, at("releases/1/file"), "3"); put(t, at("releases/2/file"), "2") }, "releases/2/file"},
		{"another link", func() { check(t, os.Symlink("main.py", at("app/link"))) }, "app/link"},
	} {
		t.Log(c.what)
		c.does()
		w.want(t, at(c.want))
	}
}

// TestNextEnds: with its context, whether something changes or not.
func TestNextEnds(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { _, err := w.Next(ctx); ended <- err }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	put(t, filepath.Join(dir, "file"), "1")
	w.want(t, filepath.Join(dir, "file")) // it can be asked again
}

// TestBusyDirectory: something that is always written does not hold up what has changed for longer than Longest.
func TestBusyDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := open(t, dir)
	w.longest = 2 * Quiet
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(Quiet / 10):
				os.WriteFile(filepath.Join(dir, "log"), nil, 0o644)
			}
		}
	}()
	defer func() { close(stop); <-ended }()
	w.want(t, filepath.Join(dir, "log"))
}

// TestOpenErrors: what is not there, and what is too much.
func TestOpenErrors(t *testing.T) {
	t.Parallel()
	if _, err := Open([]string{filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	dir := t.TempDir()
	for i := range MaxDirectories {
		check(t, os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o755))
	}
	if _, err := Open([]string{dir}); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
}
