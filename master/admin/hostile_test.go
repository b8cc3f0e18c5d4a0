package admin

import (
	"os"
	"strings"
	"testing"
)

// TestForeignDirectory: root makes no socket in a directory that others may change, except where nobody can touch
// what is another's.
//
// Row B1.
func TestForeignDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has rights that others lack")
	}
	for name, v := range map[string]struct {
		owner   int
		mode    os.FileMode
		refused bool
	}{
		"root's":    {0, 0o755, false},
		"another's": {54321, 0o755, true},
		"of all":    {0, 0o777, true},
		"as /tmp":   {0, 0o777 | os.ModeSticky, false},
		"of group":  {0, 0o775, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "handfast")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := os.Chown(dir, v.owner, v.owner); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, v.mode); err != nil {
				t.Fatal(err)
			}
			ln, err := Listen(t.Context(), Address{"unix", dir + "/admin.sock"})
			if ln != nil {
				ln.Close()
			}
			if (err != nil) != v.refused || err != nil && !strings.Contains(err.Error(), "--admin") {
				t.Errorf("error %v, want one: %v", err, v.refused)
			}
		})
	}
}
