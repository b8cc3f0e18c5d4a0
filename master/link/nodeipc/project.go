package nodeipc

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
)

// maxText is how much of a script, and of a package.json, is read.
const maxText = 1 << 20

// The modules whose workers run as they are.
const (
	stickyListen   = "sticky-listen"
	stickySession  = "sticky-session"
	socketIOSticky = "@socket.io/sticky"
)

// Project is what a program's script and package.json say about the balancers that its
// workers are written for: that the project depends on a module, and that the script names it. One
// project may have several programs, of which some listen.
type Project struct {
	Path           string // of the package.json; empty: there is none that lists dependencies
	StickyListen   bool   // depends on sticky-listen
	StickySession  bool   // depends on sticky-session
	SocketIOSticky bool   // depends on @socket.io/sticky
}

// FindProject looks for the package.json of a script, whose path has no links: the nearest one, at
// or above the folder of the script, that lists dependencies.
func FindProject(script string) Project {
	if script == "" {
		return Project{}
	}
	for dir := script; ; dir = filepath.Dir(dir) {
		if p, ok := readProject(filepath.Join(dir, "package.json")); ok {
			return p.namedIn(script)
		}
		if dir == filepath.Dir(dir) {
			return Project{}
		}
	}
}

// namedIn forgets what the script does not name. One that is a folder, of which package.json
// says more, may name anything.
func (p Project) namedIn(script string) Project {
	text, ok := readText(script)
	if !ok {
		return p
	}
	p.StickyListen = p.StickyListen && bytes.Contains(text, []byte(stickyListen))
	p.StickySession = p.StickySession && bytes.Contains(text, []byte(stickySession))
	p.SocketIOSticky = p.SocketIOSticky && bytes.Contains(text, []byte(socketIOSticky))
	return p
}

// masters are calls by which scripts start workers or hand them clients whether they are workers
// themselves or not: those of recluster and sticky-listen. A script that asks cluster.isPrimary
// first is a worker under us.
var masters = []string{"recluster(", "createBalancer("}

// NamesMaster returns the call by which a script is a master of workers of its own, "" if it has none.
func NamesMaster(script string) string {
	text, ok := readText(script)
	if !ok || bytes.Contains(text, []byte("isMaster")) || bytes.Contains(text, []byte("isPrimary")) {
		return ""
	}
	for _, call := range masters {
		if bytes.Contains(text, []byte(call)) {
			return call + ")"
		}
	}
	return ""
}

// readProject returns false for what is no package.json with dependencies.
func readProject(path string) (p Project, ok bool) {
	text, ok := readText(path)
	if !ok {
		return p, false
	}
	return parseProject(path, text)
}

// readText returns false for what is no file, for which one could wait, and what is too long.
func readText(path string) (text []byte, ok bool) {
	if stat, err := os.Stat(path); err != nil || !stat.Mode().IsRegular() {
		return nil, false
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer file.Close()
	text, err = io.ReadAll(io.LimitReader(file, maxText+1))
	return text, err == nil && len(text) <= maxText
}

func parseProject(path string, text []byte) (p Project, ok bool) {
	var content struct {
		Dependencies map[string]json.RawMessage `json:"dependencies"`
	}
	if json.Unmarshal(text, &content) != nil || content.Dependencies == nil {
		return p, false
	}
	p.Path = path
	_, p.StickyListen = content.Dependencies[stickyListen]
	_, p.StickySession = content.Dependencies[stickySession]
	_, p.SocketIOSticky = content.Dependencies[socketIOSticky]
	return p, true
}

// Dialect returns what the program's workers wait for.
func (p Project) Dialect() Dialect {
	if p.Silent() == stickySession {
		return StickySession
	}
	return StickyListen
}

// ReportsSessions tells whether the project's workers say which sessions of Engine.IO they keep.
func (p Project) ReportsSessions() bool { return p.Silent() == socketIOSticky }

// Silent names the module whose workers neither listen nor say that they are ready, if the
// project has one.
func (p Project) Silent() string {
	switch {
	case p.StickyListen: // its workers say it
		return ""
	case p.SocketIOSticky:
		return socketIOSticky
	case p.StickySession:
		return stickySession
	default:
		return ""
	}
}
