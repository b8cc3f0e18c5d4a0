package nodeipc

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// maxPackage is how much of a package.json is read.
const maxPackage = 1 << 20

// Project is what the package.json of a program says about the balancers that its workers are
// written for.
type Project struct {
	Path           string // of the package.json; empty: there is none that lists dependencies
	StickyListen   bool   // depends on sticky-listen
	StickySession  bool   // depends on sticky-session
	SocketIOSticky bool   // depends on @socket.io/sticky
}

// FindProject looks for the package.json of a command that IsNode: the nearest one, at or above
// the folder of the script, that lists dependencies. Where Node's options have values the script
// is guessed: it is the first argument that is a file or a folder.
func FindProject(command []string) Project {
	script := findScript(command)
	if script == "" {
		return Project{}
	}
	for dir := script; ; dir = filepath.Dir(dir) {
		if p, ok := readProject(filepath.Join(dir, "package.json")); ok {
			return p
		}
		if dir == filepath.Dir(dir) {
			return Project{}
		}
	}
}

// findScript returns the path of the script, as Node resolves it (links followed), or "".
func findScript(command []string) string {
	if len(command) == 0 {
		return ""
	}
	candidates := command[1:]
	if !isNodeName(command[0]) { // a script that env starts with node
		path, err := exec.LookPath(command[0])
		if err != nil {
			return ""
		}
		candidates = []string{path}
	}
	for _, name := range candidates {
		if name == "" || strings.HasPrefix(name, "-") {
			continue
		}
		for _, suffix := range []string{"", ".js"} {
			if path, err := filepath.EvalSymlinks(name + suffix); err == nil {
				path, _ = filepath.Abs(path)
				return path
			}
		}
	}
	return ""
}

// readProject returns false for what is no package.json with dependencies. It does not wait for
// what is no file.
func readProject(path string) (p Project, ok bool) {
	if stat, err := os.Stat(path); err != nil || !stat.Mode().IsRegular() {
		return p, false
	}
	file, err := os.Open(path)
	if err != nil {
		return p, false
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxPackage+1))
	if err != nil || len(text) > maxPackage {
		return p, false
	}
	return parseProject(path, text)
}

func parseProject(path string, text []byte) (p Project, ok bool) {
	var content struct {
		Dependencies map[string]json.RawMessage `json:"dependencies"`
	}
	if json.Unmarshal(text, &content) != nil || content.Dependencies == nil {
		return p, false
	}
	p.Path = path
	_, p.StickyListen = content.Dependencies["sticky-listen"]
	_, p.StickySession = content.Dependencies["sticky-session"]
	_, p.SocketIOSticky = content.Dependencies["@socket.io/sticky"]
	return p, true
}

// Dialect returns what the program's workers wait for.
func (p Project) Dialect() Dialect {
	if p.Silent() == "sticky-session" {
		return StickySession
	}
	return StickyListen
}

// Silent names the module whose workers neither listen nor say that they are ready, if the
// project has one.
func (p Project) Silent() string {
	switch {
	case p.StickyListen: // its workers say it
		return ""
	case p.SocketIOSticky:
		return "@socket.io/sticky"
	case p.StickySession:
		return "sticky-session"
	default:
		return ""
	}
}
