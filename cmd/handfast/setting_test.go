package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// releasePython and releaseNode are servers that tell of which release they are, and what they were
// started with.
const (
	releasePython = `#!/usr/bin/python3
import http.server, os, sys
release = open('release').read()
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = ' '.join([release, os.environ['PWD'], sys.argv[2]] + [os.environ.get(n, '-') for n in ('FROM', 'FILE', 'BOTH', 'NUMBER', 'HANDFAST_SLOT')])
        self.send_response(200); self.send_header('Content-Length', str(len(text))); self.end_headers(); self.wfile.write(text.encode())
    def log_message(self, *args): pass
host, _, port = sys.argv[1].rpartition(':')
http.server.ThreadingHTTPServer((host, int(port)), Hello).serve_forever()
`
	releaseNode = `#!/usr/bin/env node
const [, , at, number] = process.argv, e = process.env;
const text = [require('fs').readFileSync('release'), e.PWD, number, ...['FROM', 'FILE', 'BOTH', 'NUMBER', 'HANDFAST_SLOT'].map((n) => e[n] || '-')].join(' ');
require('http').createServer((req, res) => res.end(text)).listen(at.split(':')[1], at.split(':')[0]);
`
)

// Row D1: a deployment moves a link; a reload starts what it leads to then, with the variables that
// are in the file then. What is not there fails the reload, and the old worker goes on.
func TestDirectory(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{"any": releasePython, "node": releaseNode} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, release := range []string{"r1", "r2"} {
				noError(t, os.Mkdir(filepath.Join(dir, release), 0o755))
				program(t, filepath.Join(dir, release, "server"), []byte(script), 0o755)
				noError(t, os.WriteFile(filepath.Join(dir, release, "release"), []byte(release), 0o644))
			}
			current, variables := filepath.Join(dir, "current"), filepath.Join(dir, "variables")
			deploy := func(release, file string) {
				noError(t, os.WriteFile(variables, []byte(file), 0o644))
				noError(t, os.Symlink(release, current+".next"))
				noError(t, os.Rename(current+".next", current))
			}
			deploy("r1", "FILE=one\nBOTH=file\nHANDFAST_SLOT=9\n")
			at := trial.FreeAddress(t)
			b := runs(t, "--workers", "1", "--listen", at, "--directory", current, "--env-file", variables, "--env", "FROM=a,b", "--env", "BOTH=flag",
				"--env", "NUMBER={generation}", "--", "./server", at, "{slot}-{generation}-{{slot}}")
			b.awaitCount("worker ready", 1)
			answers := func(want string) {
				t.Helper()
				response, err := http.Get("http://" + at)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				if text, _ := io.ReadAll(response.Body); string(text) != want {
					t.Errorf("%s, want %s", text, want)
				}
			}
			answers("r1 " + current + " 0-1-{slot} a,b one flag 1 0")

			deploy("r2", "FILE=two\n")
			noError(t, os.RemoveAll(filepath.Join(dir, "r1")))
			b.signal(unix.SIGUSR2)
			b.awaitCount("worker ready", 2)
			b.await("reload finished")
			b.await("worker exited")
			answers("r2 " + current + " 0-2-{slot} a,b two flag 2 0")

			noError(t, os.WriteFile(variables, []byte("FILE=three\nnonsense\n"), 0o644))
			b.signal(unix.SIGUSR2)
			b.says("reload failed", variables+":2: want NAME=value")
			noError(t, os.Remove(current))
			noError(t, os.WriteFile(variables, nil, 0o644))
			b.signal(unix.SIGUSR2)
			if text := b.awaitCount("reload failed", 2)[1].text; !strings.Contains(text, "--directory "+current+": no such file or directory") {
				t.Error(text)
			}
			answers("r2 " + current + " 0-2-{slot} a,b two flag 2 0")
		})
	}
}

// Row D1: what makes no sense, or is not there, is said before anything starts, and by check, too.
func TestSettingErrors(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args, says string
		status     int
	}{
		{"--env NAME", `--env "NAME": want NAME=value`, exitUsage},
		{"--env 1=2", `--env "1=2": want NAME=value`, exitUsage},
		{"--directory " + dir + "/none", "--directory " + dir + "/none: no such file or directory", exitFailure},
		{"--env-file " + dir + "/none", "--env-file " + dir + "/none: no such file or directory", exitFailure},
	} {
		for _, command := range []string{"run", "check"} {
			var out fdtest.Log
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			status := run(ctx, append(append([]string{"handfast", command, "--listen", "127.0.0.1:0"}, strings.Fields(test.args)...), "--", "true"), &out, &out)
			cancel()
			if status != test.status || !strings.Contains(out.String(), test.says) {
				t.Errorf("%s %s: status %d: %s", command, test.args, status, &out)
			}
		}
	}
	var out fdtest.Log
	t.Setenv("HANDFAST_ENV", "A=1,2\nB=3")
	run(t.Context(), []string{"handfast", "check", "--listen", "127.0.0.1:0,127.0.0.2:0", "--directory", dir, "--", "true"}, &out, &out)
	for _, line := range []string{"env: ['A=1,2', B=3] # $HANDFAST_ENV", "listen: ['127.0.0.1:0', '127.0.0.2:0'] # --listen", fmt.Sprintf("directory: %s # --directory", dir), "directory, variables                 ok"} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("check does not print %s:\n%s", line, &out)
		}
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
