package master

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestThreatModel: each line of SECURITY.md says who, what, since and which tests, and those are there.
func TestThreatModel(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	there := allTests(t)
	seen := make(map[string]bool)
	for _, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| who ") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 4 {
			t.Errorf("%d cells, want 4: %s", len(cells), line)
			continue
		}
		seen[strings.TrimSpace(cells[0])] = true
		names := regexp.MustCompile("`([A-Z]\\w+)`").FindAllStringSubmatch(cells[3], -1)
		if len(names) == 0 {
			t.Errorf("no test holds the line: %s", line)
		}
		for _, name := range names {
			if !there[name[1]] {
				t.Errorf("there is no %s: %s", name[1], line)
			}
		}
	}
	for _, who := range []string{"client", "trusted proxy", "untrusted peer beside proxies", "worker of the same user", "worker of another user", "local user", "admin port"} {
		if !seen[who] {
			t.Errorf("nothing is said of the %s", who)
		}
	}
}

// allTests returns the names of all tests of the repository.
func allTests(t *testing.T) map[string]bool {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	all := make(map[string]bool)
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, match := range declared.FindAllStringSubmatch(string(text), -1) {
			all[match[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
