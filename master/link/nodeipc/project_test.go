package nodeipc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFindProject: the nearest package.json with dependencies tells what workers are written for.
func TestFindProject(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	depends := func(names ...string) string {
		return `{"dependencies":{"` + strings.Join(names, `":"^1.0.0","`) + `":"^1.0.0"}}`
	}
	write("session/package.json", depends("express", "sticky-session"))
	write("session/dist/package.json", `{"type":"module"}`)
	script := write("session/dist/server.js", `require("sticky-session")`)
	write("session/dist/other.js", "require('http')")
	write("both/package.json", depends("sticky-listen", "sticky-session"))
	write("io/package.json", depends("@socket.io/sticky", "socket.io"))
	write("io/bin/start", "#!/usr/bin/env node\nrequire('@socket.io/sticky')")
	write("plain/package.json", `{"dependencies":{},"devDependencies":{"sticky-session":"1"}}`)
	write("broken/package.json", `{"dependencies":{"sticky-session"`)
	write("odd/package.json", `{"dependencies":["sticky-session"]}`)
	write("huge/package.json", depends("sticky-session")+strings.Repeat(" ", maxText))
	for _, name := range []string{"both", "io", "plain", "broken", "odd", "huge", "pipe"} {
		write(name+"/server.js", "import 'sticky-listen'; import 'sticky-session'; import '@socket.io/sticky'")
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe/package.json"), 0o600); err != nil { // reading would wait
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, test := range []struct {
		script  string
		silent  string
		dialect Dialect
	}{
		{script, "sticky-session", StickySession},
		{at("session/dist/other.js"), "", StickyListen}, // another program of the project
		{at("session"), "sticky-session", StickySession},
		{at("both/server.js"), "", StickyListen},
		{at("io/server.js"), "@socket.io/sticky", StickyListen},
		{at("io/bin/start"), "@socket.io/sticky", StickyListen},
		{at("plain/server.js"), "", StickyListen},
		{at("broken/server.js"), "", StickyListen},
		{at("odd/server.js"), "", StickyListen},
		{at("huge/server.js"), "", StickyListen},
		{at("pipe/server.js"), "", StickyListen},
		{at("none.js"), "", StickyListen},
		{"", "", StickyListen},
	} {
		p := FindProject(test.script)
		if p.Silent() != test.silent || p.Dialect() != test.dialect {
			t.Errorf("%q: %+v, want %q and dialect %d", test.script, p, test.silent, test.dialect)
		}
	}
}

// FuzzProject: any text is read, and names modules only if it has their names.
func FuzzProject(f *testing.F) {
	f.Add([]byte(`{"dependencies":{"sticky-session":"1","@socket.io/sticky":{}}}`))
	f.Add([]byte(`{"dependencies":null}`))
	f.Add([]byte("[]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, ok := parseProject("package.json", text)
		if (p.Path != "") != ok || !ok && p != (Project{}) {
			t.Errorf("%q: %+v, %v", text, p, ok)
		}
	})
}
