package nodeipc

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// TestOpenPath: a worker listens on a path as Node's primary does, also on one that package unix would read as an
// abstract name, and on those. What is there already stays.
//
// Row B1.
func TestOpenPath(t *testing.T) {
	t.Chdir(t.TempDir())
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	for _, path := range []string{"socket", "@socket", "\x00handfast-test-" + filepath.Base(t.TempDir()) + "-" + itoa(os.Getpid())} {
		q := &query{AddressType: []byte("-1"), Address: &path}
		file, err := p.share(q)
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		if again, err := p.share(q); again != file || err != nil {
			t.Errorf("%q is opened again: %v", path, err)
		}
		_, err = os.Lstat("./" + path)
		if isFile := path[0] != 0; (err == nil) != isFile {
			t.Errorf("%q: %v", path, err)
		}
	}
	taken := "taken"
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.share(&query{AddressType: []byte("-1"), Address: &taken}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a file in the way: %v", err)
	}
	p.Close()
	for path, stays := range map[string]bool{"socket": false, "@socket": false, taken: true} {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) == stays {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestOpenStuck: while a worker's path leads where nothing answers no other path is tried, and nobody waits.
func TestOpenStuck(t *testing.T) {
	t.Chdir(t.TempDir())
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	p.stuck.Store(true)
	path := "socket"
	q := &query{AddressType: []byte("-1"), Address: &path}
	if _, err := p.share(q); err != unix.ETIMEDOUT {
		t.Errorf("error %v, want ETIMEDOUT", err)
	}
	p.stuck.Store(false)
	if _, err := p.share(q); err != nil {
		t.Error(err)
	}
}
