package nodeipc

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// command is a program of Node as a worker's process that has loaded the module, with further variables. The caller starts it.
func (l *Link) command(t *testing.T, program string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), trial.Need(t, "node", "nodejs"), program)
	cmd.Env = append(append(os.Environ(), l.Env(func(string) string { return "" })...), env...)
	cmd.ExtraFiles = l.Files()
	return cmd
}

// openModule makes a link to a worker that is to load the module. more may be nil.
func openModule(t *testing.T, more func(*Config)) *Link {
	t.Helper()
	r := new(returned)
	p := newPrimary(t, ReadyAuto, r, hclog.NewNullLogger())
	module, err := NewModule(t.TempDir())
	fdtest.Check(t, err)
	p.cfg.Module = module
	if more != nil {
		more(&p.cfg)
	}
	l, err := p.Open(0, nil)
	fdtest.Check(t, err)
	t.Cleanup(func() {
		if !fdtest.IsClosed(l.ended) {
			l.Close()
		}
	})
	return l
}

// token is what HANDFAST_ROUTE says.
const token = "abcdefghijklmnopqrstuvwx27"

// says runs a program of testdata/engineio, with the modules that it needs.
func says(t *testing.T, program, sessions string) (stdout, stderr string) {
	t.Helper()
	t.Chdir(filepath.Join("testdata", "engineio"))
	_, dir := trial.Install(t, "ids.js", "ids.mjs", "say.js", "bundled.js")
	var out, errs strings.Builder
	cmd := openModule(t, nil).command(t, filepath.Join(dir, program), "HANDFAST_ROUTE="+token, "HANDFAST_SESSION="+sessions)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %v, %s", program, err, &errs)
	}
	return out.String(), errs.String()
}

// TestEngineIO: ids of Engine.IO's sessions end in the worker's token, once, whatever makes them and by whichever module system it is
// loaded; but none of the worker's own children, and none if they are not asked for.
func TestEngineIO(t *testing.T) {
	const unknown = `[\w-]{20}`
	for _, tt := range []struct {
		program, sessions string
		want              string
	}{
		{"ids.js", "cookie:a,engine.io", lines("socket.io 4: "+unknown+"\\."+token, "socket.io 2: "+unknown+"\\."+token, "own: own\\."+token, "promised: promised\\."+token, "named: named\\."+token,
			"class: class\\."+token, "before: "+unknown+"\\."+token, "around: around-"+unknown+"\\."+token, "child: "+unknown, "thread: "+unknown)},
		{"ids.mjs", "engine.io", lines("import: " + unknown + "\\." + token)},
		{"ids.mjs", "query:sid", lines("import: " + unknown)},
	} {
		t.Run(tt.program+" "+tt.sessions, func(t *testing.T) {
			stdout, stderr := says(t, tt.program, tt.sessions)
			if !regexp.MustCompile("^"+tt.want+"$").MatchString(stdout) || stderr != "" {
				t.Errorf("%s%s, want %s", stdout, stderr, tt.want)
			}
		})
	}
}

// TestEngineIONotFound: sessions of an Engine.IO that is not seen being loaded are told of once, unless they name their worker all the same.
func TestEngineIONotFound(t *testing.T) {
	_, stderr := says(t, "bundled.js", "engine.io")
	if before, after, found := strings.Cut(stderr, "handfast: sessions of Engine.IO do not name their worker"); !found ||
		!strings.HasSuffix(before, "/?EIO=4&sid=lost\n") || strings.Contains(after, "handfast: sessions") || !strings.HasSuffix(after, "/?EIO=4&sid=lost\n") {
		t.Error(stderr)
	}
}

// realWorker is a process of Node with a server on the balancer's port, which hands connections back.
type realWorker struct {
	*Link
	t    *testing.T
	back chan fdpass.Handoff // what it hands back
}

// startWorker starts a program that has a variable server, with further variables.
func startWorker(t *testing.T, everybody bool, program string, env ...string) *realWorker {
	t.Helper()
	w := &realWorker{t: t, back: make(chan fdpass.Handoff, 1)}
	w.Link = openModule(t, func(cfg *Config) {
		cfg.Everybody = everybody
		cfg.HandBack = func(_ *Link, hs []fdpass.Handoff) (int, error) {
			w.back <- hs[0]
			return 1, nil
		}
	})
	path := filepath.Join(t.TempDir(), "server.js")
	fdtest.Check(t, os.WriteFile(path, fmt.Appendf(nil, "%s\nserver.listen(%d)", program, port), 0o600))
	cmd := w.command(t, path, env...)
	cmd.Stderr = t.Output()
	fdtest.Check(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	fdtest.Closed(t, "ready", w.Ready())
	return w
}

// connect delivers a connection, and returns its client.
func (w *realWorker) connect() *requester {
	w.t.Helper()
	conn, fd := fdtest.Connection(w.t)
	deliver(w.t, w.Link, []fdpass.Handoff{{FD: fd}})
	conn.SetDeadline(time.Now().Add(timeout))
	return &requester{w, conn, bufio.NewReader(conn)}
}

// requester makes requests over one connection.
type requester struct {
	w *realWorker
	net.Conn
	lines *bufio.Reader
}

// ask sends a request with a line of its head, and tells whether it is the connection's last one.
func (r *requester) ask(target, head string) (last bool) {
	r.w.t.Helper()
	_, err := io.WriteString(r, "GET "+target+" HTTP/1.1\r\nHost: test\r\n"+head+"\r\n\r\n")
	fdtest.Check(r.w.t, err)
	response, err := http.ReadResponse(r.lines, nil)
	fdtest.Check(r.w.t, err)
	_, err = io.Copy(io.Discard, response.Body)
	fdtest.Check(r.w.t, err)
	return response.Close
}

const answersAll = `const server = require('http').createServer((req, res) => res.end('hello'));`

// TestHandsBack: a connection goes back after each response if its peer is a trusted proxy, or if those of every peer do; and not if it
// has come to a slot's own address.
func TestHandsBack(t *testing.T) {
	for name, tt := range map[string]struct {
		everybody bool
		env       string
		goes      bool
	}{
		"proxy":        {false, "HANDFAST_TRUSTED_PROXIES=10.0.0.0/8,127.0.0.0/8", true},
		"stranger":     {false, "HANDFAST_TRUSTED_PROXIES=10.0.0.0/8", false},
		"everybody":    {true, "HANDFAST_TRUSTED_PROXIES=10.0.0.0/8", true},
		"slot address": {true, "HANDFAST_SLOT_ADDRESS=127.0.0.0/8", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := startWorker(t, tt.everybody, answersAll, tt.env)
			r := w.connect()
			for range 3 {
				if r.ask("/", "Accept: */*") {
					t.Fatal("the connection is closed")
				}
				if tt.goes {
					deliver(t, w.Link, []fdpass.Handoff{fdtest.Receive(t, "connection", w.back)})
				}
			}
			if len(w.back) > 0 {
				unix.Close((<-w.back).FD)
				t.Error("the connection is handed back")
			}
		})
	}
}
