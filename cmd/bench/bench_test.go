package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play the worker.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	if mode := os.Getenv(envWorker); mode != "" {
		serve(mode)
		return
	}
	dir, err := os.MkdirTemp("", "bench-test-")
	if err != nil {
		log.Fatal(err)
	}
	programs = sync.OnceValues(func() (string, error) {
		_, err := build(context.Background(), dir)
		return dir, errors.Join(err, buildTCPProxy(context.Background(), dir))
	})
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// programs builds what peers need, once, and returns where it is.
var programs func() (dir string, err error)

// notShort skips a test that runs servers where -short asks for quick ones.
func notShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs servers")
	}
}

// stageFor is a stage for small trials of a peer.
func stageFor(t *testing.T, p peer) *stage {
	t.Helper()
	notShort(t)
	need(t, p)
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &stage{
		settings: settings{workers: 2, concurrency: 10, clients: 100, held: 10, download: 1, duration: 100 * time.Millisecond},
		peer:     p, self: self, handfast: filepath.Join(dir, "handfast"), dir: t.TempDir(), files: 1000, ctx: t.Context(),
	}
}

// One short run of the whole, with what needs nothing installed.
func TestRun(t *testing.T) {
	notShort(t)
	page := filepath.Join(t.TempDir(), "results", "README.md")
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	chosen := []string{"short-1", "download", "held", "crowded"}
	var out, progress bytes.Buffer
	status := run(t.Context(), []string{"bench", "--rounds", "1", "--duration", "100ms", "--held", "100", "--download", "1",
		"--clients", "50", "--peers", "reuseport,handfast", "--works", strings.Join(chosen, ","), "-o", page}, &out, &progress)
	if status != 0 {
		t.Fatalf("status %d\n%s%s", status, &out, &progress)
	}
	if got := progress.String(); strings.Count(got, "held, round 1 of 1") != 2 || !strings.Contains(got, "[8/8, ") {
		t.Errorf("want 8 measurements, 2 of them held connections:\n%s", got)
	}
	markdown, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	works, err := choose(works, strings.Join(chosen, ","))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range works {
		if !strings.Contains(out.String(), w.title) || !bytes.Contains(markdown, []byte("\n## "+w.title+"\n")) {
			t.Errorf("no %q in the output:\n%s\nor on the page:\n%s", w.title, &out, markdown)
		}
		svg, err := os.ReadFile(filepath.Join(filepath.Dir(page), plotFile(w)))
		if err != nil || !bytes.Contains(svg, []byte(">handfast</text>")) || !bytes.Contains(markdown, []byte("]("+plotFile(w)+")")) {
			t.Errorf("the plot of %s, error %v:\n%s", w.name, err, svg)
		}
	}
	if n := bytes.Count(markdown, []byte("\n| handfast |")); n != len(works) {
		t.Errorf("handfast is in %d tables, want %d:\n%s", n, len(works), markdown)
	}
	if got := out.String(); strings.Contains(got, "failed in") {
		t.Errorf("output:\n%s", got)
	}
	if left, err := filepath.Glob(filepath.Join(temp, "handfast-bench-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}

// An interrupted run stops what it has started.
func TestRunInterrupted(t *testing.T) {
	notShort(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var out, progress bytes.Buffer
	status := run(ctx, []string{"bench", "--duration", "1h", "--peers", "reuseport"}, &out, &progress)
	if status != 1 {
		t.Errorf("status %d, want 1\n%s", status, &progress)
	}
	if left, err := children(os.Getpid()); err != nil || len(left) > 0 {
		t.Errorf("children %v left, error %v", left, err)
	}
}

// cancelling is where progress goes until it says a word.
type cancelling struct {
	bytes.Buffer
	at     string
	cancel context.CancelFunc
}

func (c *cancelling) Write(p []byte) (int, error) {
	n, err := c.Buffer.Write(p)
	if strings.Contains(c.String(), c.at) {
		c.cancel()
	}
	return n, err
}

// An interrupted run reports what it has measured, but for the round under way.
func TestRunInterruptedLate(t *testing.T) {
	notShort(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	page := filepath.Join(t.TempDir(), "README.md")
	var out bytes.Buffer
	progress := cancelling{at: "round 3 of 100: reuseport", cancel: cancel}
	status := run(ctx, []string{"bench", "--rounds", "100", "--duration", "10ms", "--peers", "reuseport",
		"--works", "short-1,short-4", "-o", page}, &out, &progress)
	markdown, err := os.ReadFile(page)
	if status != 1 || err != nil || !bytes.Contains(markdown, []byte("Interrupted in short-1, round 3 of 100.")) {
		t.Errorf("status %d, error %v\n%s%s", status, err, &progress, markdown)
	}
	if !strings.Contains(out.String(), ", 1 worker") || strings.Contains(out.String(), ", 4 workers") {
		t.Errorf("want only what was measured:\n%s", &out)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--rounds", "0"},
		{"--rounds", "x"},
		{"--peers", "nobody"},
		{"--works", "short,idle"},
		{"--works", "shor"},
		{"--works", "forwarded", "--peers", "nginx-stream"},
		{"--download", "0"},
		{"--clients", "100000000"},
		{"argument"},
	} {
		var out, progress bytes.Buffer
		if status := run(t.Context(), append([]string{"bench"}, args...), &out, &progress); status != 2 {
			t.Errorf("%v: status %d, want 2\n%s", args, status, &progress)
		}
	}
}

// The load opens as many connections as it should, each from the next client.
func TestLoad(t *testing.T) {
	seen := make(chan string, 100)
	to := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		seen <- host
		handler().ServeHTTP(w, r)
	})
	l := load{to: to, exchange: shortExchange, clients: 10, concurrency: 5, duration: time.Minute, total: 100}
	result, err := l.run(t.Context())
	if err != nil || result.failed > 0 || len(result.latencies) != 100 || result.inTime != 100 {
		t.Fatalf("%d answers, %d in time, %d failures (%v), error %v",
			len(result.latencies), result.inTime, result.failed, result.err, err)
	}
	count := map[string]int{}
	for range 100 {
		count[<-seen]++
	}
	if len(count) != 10 || count["127.1.0.0"] != 10 || count["127.1.9.9"] != 10 {
		t.Errorf("connections by client: %v, want 10 from each of 10", count)
	}
}

// Each client has a request of its own, whichever thread of the load sends it.
func TestLoadForwarded(t *testing.T) {
	type client struct{ from, forwarded string }
	seen := make(chan client, 100)
	to := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		seen <- client{host, r.Header.Get("X-Forwarded-For")}
		handler().ServeHTTP(w, r)
	})
	l := load{to: to, exchange: forwardedExchange(10), clients: 10, concurrency: 5, duration: time.Minute, total: 100}
	result, err := l.run(t.Context())
	if err != nil || result.failed > 0 || len(result.latencies) != 100 {
		t.Fatalf("%d answers, %d failures (%v), error %v", len(result.latencies), result.failed, result.err, err)
	}
	count := map[client]int{}
	for range 100 {
		count[<-seen]++
	}
	if len(count) != 10 || count[client{"127.1.0.0", "198.18.0.0"}] != 10 || count[client{"127.1.9.9", "198.18.9.9"}] != 10 {
		t.Errorf("connections by client: %v, want 10 from each of 10", count)
	}
}

func TestForwardedRequests(t *testing.T) {
	requests := forwardedExchange(1000).requests
	forBenchmarks := netip.MustParsePrefix("198.18.0.0/15") // RFC 2544, appendix C.2.2
	seen := map[netip.Addr]bool{}
	for _, request := range requests {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(request)))
		if err != nil {
			t.Fatalf("%v\n%s", err, request)
		}
		client, err := netip.ParseAddr(r.Header.Get("X-Forwarded-For"))
		if err != nil || seen[client] || !forBenchmarks.Contains(client) || len(request) < 300 || len(request) > 400 {
			t.Fatalf("%d bytes, error %v, or a client again\n%s", len(request), err, request)
		}
		seen[client] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d clients, want 1000", len(seen))
	}
	clear(seen)
	for i := range maxForwarded + 5 { // who comes later shares an address
		seen[forwardedAddress(i)] = true
	}
	if len(seen) != maxForwarded {
		t.Errorf("%d different clients, want %d", len(seen), maxForwarded)
	}
}

// Every peer serves, those that say so are sticky, also to a client before a proxy,
// and a reload replaces all workers; with handfast no connection is lost.
func TestPeers(t *testing.T) {
	for _, p := range goPeers {
		t.Run(p.name, func(t *testing.T) {
			s := stageFor(t, p)
			defer s.close()
			if err := s.open(); err != nil {
				t.Fatal(err)
			}
			if p.name != theLimit {
				wantSticky(t, s)
			}
			if slices.Contains(forwarding[2:], p.name) {
				wantForwarded(t, s)
			}
			if slices.Contains([]string{theHandoff, tcpproxyName, theHTTPProxy, "haproxy-http"}, p.name) {
				figures, err := webSockets(t.Context(), s)
				if err != nil || figures[failures] != 0 || figures[messageRate] == 0 || figures[connections] != 10 {
					t.Errorf("WebSockets: %v, error %v, failure %v", figures, err, s.failure)
				}
			}
			if strings.Contains(p.name, "-pool") || p.name == "handfast-slots" {
				figures, err := pooledRequests(t.Context(), s)
				if err != nil || figures[failures] != 0 || figures[misplaced] != 0 || figures[requestRate] == 0 {
					t.Errorf("requests: %v, error %v, failure %v", figures, err, s.failure)
				}
			}
			if p.reload == nil {
				return
			}
			old := s.workerPIDs
			if ours(p.name) {
				figures, err := reloadUnderLoad(t.Context(), s)
				if err != nil || figures[rate] == 0 || figures[failures] != 0 {
					t.Errorf("reload: %v, error %v, failure %v", figures, err, s.failure)
				}
			} else if _, err := s.reloadWorkers(); err != nil {
				t.Errorf("reload: %v", err)
			}
			if err := s.hasEnded(); err != nil {
				t.Error(err)
			}
			if err := s.await(); err != nil || slices.ContainsFunc(s.workerPIDs, func(pid int) bool { return slices.Contains(old, pid) }) {
				t.Errorf("workers before %v, and now %v, error %v", old, s.workerPIDs, err)
			}
		})
	}
}

// wantForwarded fails the test unless a client before the proxy belongs to a worker,
// whichever address the proxy has.
func wantForwarded(t *testing.T, s *stage) {
	count := map[int]int{}
	for client := range 20 {
		first, err := s.ask(t.Context(), 0, client)
		if err != nil {
			t.Fatal(err)
		}
		for from := range 5 {
			if pid, err := s.ask(t.Context(), from, client); pid != first || err != nil {
				t.Errorf("client %d: worker %d, error %v; before it was %d", client, pid, err, first)
			}
		}
		count[first]++
	}
	if len(count) != 2 {
		t.Errorf("clients by worker: %v, want both to have some", count)
	}
}

// need skips the test, but not in continuous integration, when a peer cannot be started.
func need(t *testing.T, p peer) {
	t.Helper()
	if pkg := p.lacks(); pkg != "" {
		if os.Getenv("CI") != "" {
			t.Fatalf("apt-get install %s", pkg)
		}
		t.Skipf("apt-get install %s", pkg)
	}
}

// The peers that a work compares are in the table of peers, and it shows what it draws.
func TestWorks(t *testing.T) {
	for _, w := range works {
		rows := rowNames(w.rows(peers))
		if want := len(w.peers) * max(len(w.cases), 1); len(rows) != want {
			t.Errorf("%s: rows %v, want %d for %v", w.name, rows, want, w.peers)
		}
		for _, c := range w.columns {
			if c.over != "" && !slices.Contains(rows, c.over) {
				t.Errorf("%s: %q, but that row is none of its own", w.name, c.head())
			}
		}
		for _, figure := range w.plots {
			if !slices.Contains(w.columns, column{of: figure}) {
				t.Errorf("%s draws %q and does not show it", w.name, figure)
			}
		}
	}
}

// Figures that cannot be compared are left out.
func TestMatch(t *testing.T) {
	for _, test := range []struct{ peers, works, wantPeers, wantWorks string }{
		{"reuseport,handfast", "short-1,held,forwarded", "reuseport,handfast", "short-1,held,forwarded"},
		{"nginx-stream,haproxy-tcp", "forwarded,held", "nginx-stream,haproxy-tcp", "held"},
		{"nginx-stream,handfast", "forwarded", "handfast", "forwarded"},
		{"nginx-http", "node", "", ""},
		{"handfast", "short,sweep", "handfast", "short-1,short-4,short-16,sweep-workers,sweep-clients"},
		{"nginx,handfast", "download", "nginx-stream,nginx-http,handfast", "download"},
	} {
		var set settings
		var errs [3]error
		set.peers, errs[0] = choose(peers, test.peers)
		set.works, errs[1] = choose(works, test.works)
		if errs[2] = set.match(); (errs[2] != nil) != (test.wantWorks == "") || errs[0] != nil || errs[1] != nil {
			t.Errorf("%+v: errors %v", test, errs)
		}
		if p, w := strings.Join(names(set.peers), ","), strings.Join(names(set.works), ","); p != test.wantPeers || w != test.wantWorks {
			t.Errorf("%+v: got %q and %q", test, p, w)
		}
	}
}

func TestLoadFails(t *testing.T) {
	to := serveHTTP(t, http.NotFound)
	l := load{to: to, exchange: shortExchange, clients: 1, concurrency: 2, duration: time.Minute, total: 10}
	result, err := l.run(t.Context())
	if err != nil || result.failed != 10 || !strings.Contains(result.err.Error(), "404") {
		t.Errorf("a wrong answer: %d failures (%v), error %v", result.failed, result.err, err)
	}

	l.to, l.total = netip.MustParseAddrPort("127.0.0.1:1"), 0
	result, err = l.run(t.Context())
	if err != nil || result.failed < maxFailures || !errors.Is(result.err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %d failures (%v), error %v", result.failed, result.err, err)
	}
}

func TestKeptConnections(t *testing.T) {
	to := serveHTTP(t, handler().ServeHTTP)
	l := load{to: to, exchange: heldExchange, clients: 1, concurrency: 2, duration: time.Minute, total: 10, keep: true}
	result, err := l.run(t.Context())
	if err != nil || result.failed > 0 || len(result.latencies) != 10 {
		t.Fatalf("%d answers, %d failures (%v), error %v", len(result.latencies), result.failed, result.err, err)
	}
	if n := result.closeKept(); n != 0 {
		t.Errorf("%d connections were disturbed", n)
	}
}

// serveHTTP runs a server until the test has ended.
func serveHTTP(t *testing.T, handle http.HandlerFunc) netip.AddrPort {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handle}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func TestShare(t *testing.T) {
	for _, n := range []int{0, 1, 5, 32, 10_001} {
		for of := 1; of <= 5; of++ {
			sum := 0
			for i := range of {
				part := share(n, of, i)
				if part < n/of || part > n/of+1 {
					t.Errorf("share %d of %d in %d parts: %d", i, n, of, part)
				}
				sum += part
			}
			if sum != n {
				t.Errorf("%d parts of %d: %d together", of, n, sum)
			}
		}
	}
}

// The clock of a process counts what the process does.
func TestProcessorTime(t *testing.T) {
	self := []int{os.Getpid()}
	before, err := processorTime(self)
	if err != nil {
		t.Fatal(err)
	}
	const work = 50 * time.Millisecond
	for start := time.Now(); time.Since(start) < work; {
	}
	after, err := processorTime(self)
	if err != nil {
		t.Fatal(err)
	}
	if spent := after - before; spent <= 0 || spent > time.Minute {
		t.Errorf("%v for %v of work", spent, work)
	}
	if _, err := processorTime([]int{1 << 24}); err == nil {
		t.Error("a process that is not there has a clock")
	}
}

// A balancer with several processes is measured when all are there.
func TestFamily(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 0.1; sleep 60 & sleep 60 & sleep 60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	s := &stage{ctx: t.Context()}
	pids, err := s.family(cmd.Process.Pid, 3, nil)
	if err != nil || len(pids) != 4 || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("processes %v, error %v, want %d and 3 children", pids, err, cmd.Process.Pid)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	s.ctx = ctx
	if pids, err := s.family(cmd.Process.Pid, 5, nil); err == nil {
		t.Errorf("%v are 5 children", pids)
	}
	if pids, err := s.family(cmd.Process.Pid, 3, pids[2:3]); err == nil {
		t.Errorf("%v are none of the old children", pids)
	}
}

// The format of smaps_rollup: man 5 proc_pid_smaps.
func TestAnonymous(t *testing.T) {
	rollup := "00400000-7ffd1 ---p 00000000 00:00 0    [rollup]\nRss:   884 kB\nPss:   385 kB\nPss_Anon:        301 kB\nAnonymous:  400 kB\n"
	if got, err := anonymous([]byte(rollup)); err != nil || got != 301<<10 {
		t.Errorf("%d, %v, want %d", got, err, 301<<10)
	}
	if _, err := anonymous(nil); err == nil {
		t.Error("no error for an empty file")
	}
	if got, err := memory([]int{os.Getpid()}); err != nil || got < 100<<10 {
		t.Errorf("this process has %d bytes, error %v", got, err)
	}
}
