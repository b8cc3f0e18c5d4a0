package main

import (
	"errors"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/programs"
)

// TestChoose walks what --worker-link auto decides by.
// Rows C1, C2, D4 and D5.
func TestChoose(t *testing.T) {
	proxy, many, busy := intent{header: true}, intent{workers: 200}, errors.New("EBUSY")
	const starts = "npm starts the program"
	app := []string{"node", "an app.js"}
	for _, test := range []struct {
		kind    programs.Kind
		instead []string
		args    string // of the program
		mailbox bool
		asked   intent
		filter  error

		injection error

		want  master.LinkKind
		says  string // in the reason, or in the error
		fails bool
	}{
		{kind: programs.Node, want: master.LinkNode, says: starts},
		{kind: programs.Node, mailbox: true, asked: proxy, filter: busy, want: master.LinkNode},
		{kind: programs.NodeStarter, want: master.LinkAny, says: "run node itself"},
		{kind: programs.NodeStarter, instead: app, asked: proxy, fails: true, says: "too late for it; run node itself: -- node 'an app.js'; or use --worker-link any"},
		{kind: programs.NodeStarter, asked: proxy, fails: true, says: "run node itself (-- node SCRIPT); or use --worker-link any"},
		{kind: programs.NodeStarter, instead: app, filter: busy, fails: true, says: "EBUSY; run node itself: --"},
		{kind: programs.NodeTool, want: master.LinkAny},
		{kind: programs.NodeTool, asked: proxy, want: master.LinkNode, says: "behind-proxy"},
		{kind: programs.NodeTool, filter: busy, want: master.LinkNode, says: "EBUSY"},
		{kind: programs.NodeWithoutScript, fails: true, says: "name a script"},
		{mailbox: true, want: master.LinkNative, says: "HANDFAST_FD"},
		{mailbox: true, asked: proxy, filter: busy, want: master.LinkNative, says: "HANDFAST_FD"},
		{want: master.LinkAny, says: "neither is Node nor names HANDFAST_FD"},
		{asked: proxy, want: master.LinkInject, says: "behind-proxy"},
		{asked: proxy, args: "gunicorn", want: master.LinkInject, says: "neither is Node nor names HANDFAST_FD"},
		{asked: proxy, injection: busy, want: master.LinkNative, says: "has to know handfast, since EBUSY"},
		{asked: proxy, injection: busy, args: "gunicorn", fails: true, says: "EBUSY"},

		{asked: many, fails: true, says: "--workers 200: 200 slots are more than the 128"},
		{asked: many, args: "gunicorn", fails: true, says: "use --workers 128 or fewer"},
		{asked: many, mailbox: true, want: master.LinkNative},
		{asked: many, kind: programs.Node, want: master.LinkNode},
		{filter: busy, args: "gunicorn", want: master.LinkActivation, says: "LISTEN_FDS; it cannot be given one when it binds: EBUSY"},
		{filter: busy, args: "uvicorn", fails: true, says: "EBUSY"},
		{filter: busy, fails: true, says: "if the command knows handfast use --worker-link native"},
		{filter: errNoProc, args: "gunicorn", fails: true, says: "mount -t proc"},
		{filter: errNoProc, mailbox: true, want: master.LinkNative},
		{filter: errNoProc, kind: programs.Node, want: master.LinkNode},
	} {
		f := facts{
			program: programs.Command{Kind: test.kind, Instead: test.instead, Why: starts, Args: strings.Fields(test.args)},
			mailbox: test.mailbox,
			noBind:  test.filter,

			noInjection: test.injection,
			noEBPF:      errNoRight,
		}
		f.server, f.known = f.program.Server()
		noListeners := test.asked.noListeners(test.asked.notKernel(f))
		got, err := test.asked.choose(f, noListeners)
		says := got.why + " " + got.otherwise
		if err != nil {
			says = err.Error()
			if usage := (usageError{}); noListeners != nil && !errors.Is(err, test.injection) && !errors.As(err, &usage) {
				t.Errorf("%+v: %v is no usage error", test, err)
			}
		}
		if got.link != test.want || (err != nil) != test.fails || !strings.Contains(says, test.says) {
			t.Errorf("%+v: %v, %v", test, got, err)
		}
	}
}

// TestDefaultWorkers: there are no more slots by default than either route can do, and check tells
// where the number comes from.
// Row D4.
func TestDefaultWorkers(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for _, test := range []struct {
		cpus, want int
		env        string
		origin     string
	}{
		{runtime.NumCPU(), runtime.NumCPU(), "", "default: number of CPUs"},
		{256, 128, "", "default: number of CPUs (256), at most 128"},
		{256, 128, "256", "default: GOMAXPROCS (256), at most 128"},
		{1, 1, "", "default: the cgroup's CPU quota"},
	} {
		if test.cpus == 1 && runtime.NumCPU() == 1 {
			continue
		}
		t.Setenv("GOMAXPROCS", test.env)
		runtime.GOMAXPROCS(test.cpus)
		if n, origin := defaultWorkers(); n != test.want || origin != test.origin {
			t.Errorf("%d CPUs: %d, %q", test.cpus, n, origin)
		}
	}
	t.Setenv("GOMAXPROCS", "")
	runtime.GOMAXPROCS(256)
	var out fdtest.Log
	run(t.Context(), []string{"handfast", "check", "--listen", "127.0.0.1:0"}, &out, io.Discard)
	if want := "workers: 128 # default: number of CPUs (256), at most 128\n"; !strings.Contains(out.String(), want) {
		t.Errorf("check says %s", out.String())
	}
}

// TestNested: where somebody has the filter's notifications already, a server that is known to inherit
// listeners does so, and others are refused at once, with what would do.
// Row D5.
func TestNested(t *testing.T) {
	t.Parallel()
	trial.Need(t, "gunicorn", "gunicorn")
	self := itself(t)
	nested := func(command ...string) *instance {
		outer := []string{self, "run", "--stop-timeout", "1s", "--kill-timeout", "1s", "--workers", "1", "--worker-link", "any", "--backoff-min", "30s", "--backoff-max", "30s", "--listen", trial.FreeAddress(t), "--"}
		return runsUnder(t, outer, slices.Concat([]string{"--workers", "2"}, command)...)
	}
	t.Run("inherits", func(t *testing.T) {
		address := trial.FreeAddress(t)
		b := nested("--listen", address, "--", "gunicorn", "-b", address, "wsgiref.simple_server:demo_app")
		b.says("worker link chosen", `"link":"activation"`, "LISTEN_FDS", "by seccomp notifications already")
		b.awaitCount("worker ready", 2)
		response, err := http.Get("http://" + address)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatal(response, err)
		}
		response.Body.Close()
	})
	t.Run("does not", func(t *testing.T) {
		b := nested("--listen", "127.0.0.1:0", "--", "/usr/bin/python3", "-m", "http.server")
		if line := b.hears("handfast: servers that bind", 1)[0]; !strings.Contains(line, "by seccomp notifications already") || !strings.Contains(line, "--worker-link activation") {
			t.Error(line)
		}
	})
}
