package main

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/handfast/handfast/cmd/trial"
)

// ownPort is a server with a port of its own, the same in each worker: it takes that last, as Caddy does for
// HTTP/3, or first, and then serves.
const ownPort = `
import os, sys, socket, http.server
def own():
    global s; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if sys.argv[2] == 'udp' else socket.SOCK_STREAM)
    s.bind(('127.0.0.1', int(sys.argv[3])))
    if sys.argv[2] == 'tcp': s.listen()
own()
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
`

// TestOwnPort: two workers that want the same port of their own: which, and who has it, is said at once.
// For a server that listens by itself its calls tell; else, and where that is seen, its last words.
// Row D13.
func TestOwnPort(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, network string
		flags         []string
	}{
		{"its calls, UDP", "udp", nil},
		{"its calls, TCP", "tcp", nil},
		{"last words", "tcp", []string{"--worker-link", "any", "--worker-output", "json"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			address, port := trial.FreeAddress(t), portOf(t, trial.FreeAddress(t))
			args := append([]string{"--listen", "127.0.0.1:" + portOf(t, address), "--workers", "2"}, test.flags...)
			b := runs(t, append(args, "--", "/usr/bin/python3", "-c", ownPort, portOf(t, address), test.network, port)...)
			b.says("worker cannot have an address of its own that another one has", `"network":"`+test.network+`"`, `"address":"127.0.0.1:`+port, `"other_slot":`, "{slot}")
		})
	}
}

// TestBesideLink: a server that listens by itself, and for which a link was asked that it knows nothing of, is
// told so as soon as it fails, or after five seconds.
// Row C1.
func TestBesideLink(t *testing.T) {
	t.Parallel()
	node := findNode(t)
	address := freeAddress(t)
	script := `require("http").createServer().listen(` + portOf(t, address) + `, "127.0.0.1")`
	b := runs(t, "--listen", "127.0.0.1:"+portOf(t, address), "--workers", "1", "--worker-link", "node", "--worker-output", "json", "--", "env", "-u", "NODE_UNIQUE_ID", "-u", "NODE_CHANNEL_FD", node, "-e", script)
	b.says("workers will not hear Node's channel", "-e", "--worker-link any")
	b.says("worker binds the port beside its link", `"link":"node"`, "--worker-link any", strconv.Quote("port")+":"+portOf(t, address))

	began := time.Now()
	b = runs(t, "--listen", "127.0.0.1:0", "--workers", "1", "--worker-link", "native", "--", "sleep", "1000")
	b.says("worker is not ready yet", "package worker", "--worker-link any")
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("it was said after %v", took)
	}
}

// TestWaitsFor is row C6: of a worker of sticky-session whose package.json is elsewhere the log says what it
// is waited for, and the flag that helps.
func TestWaitsFor(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "server.js")
	writeScript(t, script, "// of sticky-session\nprocess.on('message', () => {});")
	b := runs(t, "--listen", "127.0.0.1:0", "--workers", "1", "--", findNode(t), script)
	b.says("worker is not ready yet", "{cmd: 'ready'}", "--worker-link sticky-session", "--ready-when started")
}

// TestMasterAsWorker is row C5: a script that is itself a master of workers, as sticky-listen's cluster.js, is
// named at once, with what to run instead.
func TestMasterAsWorker(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "cluster.js")
	writeScript(t, script, "const recluster = () => {}, sticky = { createBalancer() { } };\nrecluster(); sticky.createBalancer();\nsetInterval(() => {}, 1000);")
	b := runs(t, "--listen", "127.0.0.1:0", "--workers", "1", "--", findNode(t), script)
	b.says("the script runs workers of its own: as a worker it has none, and its clients are refused", "recluster()", "script of its workers", "--worker-link any")
}

func writeScript(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
