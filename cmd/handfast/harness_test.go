package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/cmd/trial/nthcall"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/link/launch"
)

// The tests run the real thing: this test binary plays the command when
// testRole is set. The workers are testworker.
const testRole = "HANDFAST_TEST_BINARY"

const testWorker = "github.com/handfast/handfast/cmd/handfast/testdata/worker"

// patience bounds every wait for something that should happen soon. It only guards against hanging: on a machine where
// much else runs a server takes half a minute to start.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	launch.Main()
	nthcall.Main()
	if os.Getenv(testRole) == "" {
		os.Setenv("HANDFAST_ADMIN", "off")       // unless a test says where
		os.Setenv("HANDFAST_PROBATION", "0")     // unless it is on trial: a reload has not to last
		os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process takes a second to exit
		os.Exit(trial.Main(m))
	}
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}

// instance is a running `handfast run`.
type instance struct {
	t     *testing.T
	cmd   *exec.Cmd
	addr  string // of its first listener
	admin string // the path of its socket for status and commands

	contained bool // its pids are of a namespace of its own, whose processes end with it
	exited    chan struct{}

	mu      sync.Mutex
	lines   []logLine
	changed chan struct{} // closed and replaced when lines grows
}

// logLine is one line of the JSON log.
type logLine struct {
	text       string
	Message    string `json:"@message"`
	Level      string `json:"@level"`
	Address    string `json:"address"`
	Exit       string `json:"exit"`
	Err        string `json:"err"`
	Slot       int    `json:"slot"`
	PID        int    `json:"pid"`
	Generation int    `json:"generation"`
	Accepted   int    `json:"accepted"`
	ByMaster   int    `json:"accepted_by_master"`
	HandedOff  int    `json:"handed_off"`
	TakenBack  int    `json:"taken_back"`
	Refused    int    `json:"refused"`
	Stream     string `json:"stream"`
	LastWords  string `json:"last_words"`
}

// options changes how a balancer is started.
type options struct {
	flags    []string        // of `handfast run`
	worker   []string        // arguments of testworker; default "http"
	race     bool            // the worker is on trial, too: it has the race detector if the test has
	lean     bool            // the master has none, and starts in a fraction of the time: it does so often
	notReady bool            // do not wait until the workers are ready
	noAdmin  bool            // no --admin, which is else a path of this balancer's own
	variant                  // what is not said here is as the test says it; see under
	change   func(*exec.Cmd) // last changes to the command

	contained bool // see instance
}

// itself returns the path of this test binary, which plays the command.
func itself(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts handfast and workers")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// variant is how clients come to slots, and connections to workers.
type variant struct {
	route string // "" is master
	link  string // "" is auto
}

// variants has those under which tests run again, by the names of the tests.
var variants sync.Map

// under has the test, and all that are part of it, start balancers like that.
func under(t *testing.T, v variant) {
	variants.Store(t.Name(), v)
	t.Cleanup(func() { variants.Delete(t.Name()) })
}

// variantOf returns what the test, or the nearest that it is part of, runs under.
func variantOf(t *testing.T) variant {
	for name := t.Name(); ; {
		if v, ok := variants.Load(name); ok {
			return v.(variant)
		}
		end := strings.LastIndexByte(name, '/')
		if end < 0 {
			return variant{}
		}
		name = name[:end]
	}
}

// start runs a balancer with n workers on 127.0.0.1 until the test ends.
func start(t *testing.T, n int, o options) *instance {
	t.Helper()
	b := prepare(t, n, o)
	b.launch()
	b.addr = b.await("listening").Address
	if !o.notReady {
		b.awaitCount("worker ready", n)
	}
	return b
}

// prepare is start for what is not launched yet.
func prepare(t *testing.T, n int, o options) *instance {
	t.Helper()
	self := itself(t)
	if o.lean {
		self = trial.Build(t, "github.com/handfast/handfast/cmd/handfast")
	}
	if o.worker == nil {
		o.worker = []string{"http"}
	}
	build := trial.Build
	if o.race {
		build = trial.BuildAsTest
	}
	all := variantOf(t)
	v := variant{cmp.Or(o.route, all.route, "master"), cmp.Or(o.link, all.link)}
	admin := socketPath(t)
	if !o.noAdmin {
		o.flags = append([]string{"--admin", admin}, o.flags...)
	}
	args := []string{"run", "--log-json", "--log-level", "debug", "--stop-timeout", "10s", "--workers", strconv.Itoa(n)}
	args = append(args, "--max-retries", "1200") // or who comes while workers start is refused on a slow machine
	listen := ""
	if v.link == "any" {
		listen = trial.FreeAddress(t)
		args = append(args, "--listen", listen)
	} else if !slices.Contains(o.flags, "--listen") {
		args = append(args, "--listen", "127.0.0.1:0")
	}
	args = slices.Concat(args, o.flags, []string{"--", build(t, testWorker)}, o.worker)
	b := newInstance(t, self, args...)
	b.admin, b.contained = admin, o.contained
	b.cmd.Env = append(os.Environ(), testRole+"=1", "HANDFAST_TEST_LISTEN="+listen, "HANDFAST_ROUTE="+v.route) // flags come first
	if v.link != "" {
		b.cmd.Env = append(b.cmd.Env, "HANDFAST_WORKER_LINK="+v.link)
	}
	if o.change != nil {
		o.change(b.cmd)
	}
	return b
}

// newInstance is the instance that a command is, once it is launched.
func newInstance(t *testing.T, program string, args ...string) *instance {
	return &instance{t: t, cmd: exec.Command(program, args...), exited: make(chan struct{}), changed: make(chan struct{})}
}

// launch starts the command and follows its log, until the test ends.
func (b *instance) launch() {
	b.t.Helper()
	stderr, err := b.cmd.StderrPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	read := make(chan struct{})
	go func() { defer close(read); b.readLog(stderr) }()
	go func() { <-read; b.cmd.Wait(); close(b.exited) }()
	b.t.Cleanup(b.cleanup)
}

// socketPath is where a socket can be: a test's own directory may have too long a name.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "handfast")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "admin.sock")
}

// readLog collects the log, and what else is written to standard error.
func (b *instance) readLog(r io.Reader) {
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		line := logLine{text: scanner.Text()}
		json.Unmarshal(scanner.Bytes(), &line) // a line that is not ours stays text
		if line.Stream != "" {                 // and so does a worker's
			line.text, line.Message = line.Message, ""
		}
		b.mu.Lock()
		b.lines = append(b.lines, line)
		close(b.changed)
		b.changed = make(chan struct{})
		b.mu.Unlock()
	}
}

// log returns the lines with this message.
func (b *instance) log(message string) (found []logLine) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if l.Message == message {
			found = append(found, l)
		}
	}
	return found
}

// await waits for a message in the log and returns its first line.
func (b *instance) await(message string) logLine {
	b.t.Helper()
	return b.awaitCount(message, 1)[0]
}

// awaitCount waits until a message has been logged n times.
func (b *instance) awaitCount(message string, n int) []logLine {
	b.t.Helper()
	timeout := time.After(patience)
	for {
		b.mu.Lock()
		changed := b.changed
		b.mu.Unlock()
		if found := b.log(message); len(found) >= n {
			return found
		}
		select {
		case <-changed:
		case <-timeout:
			b.t.Fatalf("%q was logged %d times, want %d", message, len(b.log(message)), n)
		}
	}
}

// cleanup stops the balancer, and fails the test if something outlived it or a
// race detector spoke.
func (b *instance) cleanup() {
	b.signal(unix.SIGTERM)
	select {
	case <-b.exited:
	case <-time.After(patience):
		b.t.Error("the balancer does not stop")
		b.signal(unix.SIGTERM)
		select {
		case <-b.exited:
		case <-time.After(patience):
			b.cmd.Process.Kill()
			<-b.exited
		}
	}
	reaped := make(map[int]int) // by pid, which others may have by now
	for _, l := range b.log("worker exited") {
		reaped[l.PID]++
	}
	for _, l := range b.log("worker started") {
		if b.contained {
			break
		}
		if reaped[l.PID] > 0 {
			reaped[l.PID]--
			continue
		}
		pid := l.PID
		if !eventually(func() bool { return !alive(pid) }) {
			b.t.Errorf("worker %d outlived the balancer", pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if strings.Contains(l.text, "DATA RACE") || strings.HasPrefix(l.text, "panic:") {
			b.t.Error(l.text)
		}
	}
	if b.t.Failed() {
		for _, l := range b.lines {
			b.t.Log(l.text)
		}
	}
}

// program writes a file that is to be run. No process may be forked meanwhile: until it has called
// execve it would have the file open for writing, and nobody could run it (man 2 execve, ETXTBSY).
func program(t *testing.T, path string, content []byte, mode os.FileMode) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Error(err)
	}
}

// alive tells whether a process exists and is not a zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// freeze stops a process and waits until none of its threads runs any more: until
// then one may still take a connection, which is then the worker's.
func freeze(t *testing.T, pid int) {
	t.Helper()
	stop(t, pid, func(standing, all int) bool { return standing == all })
}

// freezeMost is freeze for a process with threads that cannot be stopped where they are: they will
// stand when they leave the kernel, as soon as another thread does.
func freezeMost(t *testing.T, pid int) {
	t.Helper()
	stop(t, pid, func(standing, _ int) bool { return standing > 0 })
}

// stop stops a process and waits until it is enough that so many of all threads stand still.
func stop(t *testing.T, pid int, enough func(standing, all int) bool) {
	t.Helper()
	unix.Kill(pid, unix.SIGSTOP)
	if !eventually(func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		standing := 0
		for _, thread := range threads {
			if stat, err := os.ReadFile(thread); err != nil || bytes.Contains(stat, []byte(") T ")) {
				standing++ // or has ended
			}
		}
		return len(threads) > 0 && enough(standing, len(threads))
	}) {
		t.Fatalf("process %d does not stop", pid)
	}
}

func (b *instance) signal(sig syscall.Signal) { b.cmd.Process.Signal(sig) }

// exit waits for the end of the balancer and returns its exit status.
func (b *instance) exit() int {
	b.t.Helper()
	select {
	case <-b.exited:
	case <-time.After(patience):
		b.t.Fatal("the balancer does not stop")
	}
	return b.cmd.ProcessState.ExitCode()
}

// worker returns the pid of the worker that filled a slot last. The log may lag behind what a
// client has seen of it: if that worker has ended, its successor is waited for.
func (b *instance) worker(slot int) (pid int) {
	b.t.Helper()
	if !eventually(func() bool {
		for _, l := range b.log("worker ready") {
			if l.Slot == slot {
				pid = l.PID
			}
		}
		return pid != 0 && alive(pid)
	}) {
		b.t.Fatalf("nobody is in slot %d, the last one was worker %d", slot, pid)
	}
	return pid
}

// kill kills a process and waits for its end: until then one of its threads may still take a
// connection.
func kill(t *testing.T, pid int) {
	t.Helper()
	unix.Kill(pid, unix.SIGKILL)
	if !eventually(func() bool { return !alive(pid) }) {
		t.Fatalf("process %d cannot be killed", pid)
	}
}

// files returns how many descriptors the balancer has open, but for those by which it looks at its
// workers now and then.
func (b *instance) files() (n int) {
	open := fdtest.OpenFilesOf(b.cmd.Process.Pid)
	if len(open) == 0 {
		b.t.Fatal("the balancer has ended")
	}
	for _, name := range open {
		if !strings.HasPrefix(name, "/proc/") {
			n++
		}
	}
	return n
}

// eventually polls until f is true, and tells whether that came. It asks ever more rarely: asking costs the time of
// what it waits for.
func eventually(f func() bool) bool {
	const most = 20 * time.Millisecond
	pause := time.Millisecond
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(pause) {
		if f() {
			return true
		}
		pause = min(pause*5/4, most)
	}
	return false
}

// cpuTime returns the CPU time that a process has used.
func cpuTime(t *testing.T, pid int) time.Duration {
	var ts unix.Timespec
	// The clock of a process, as clock_getcpuclockid(3) makes it.
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// source returns the i-th loopback address to connect from.
func source(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 0, byte(1 + i/250), byte(1 + i%250)})
}

// sourceIn returns the i-th source whose slot, of n, this is.
func sourceIn(slot, n, i int) netip.Addr {
	for k := 0; ; k++ {
		if hash.DefaultConfig().Key(source(k)).Slot(n) == slot {
			if i == 0 {
				return source(k)
			}
			i--
		}
	}
}

// answer is what a worker's response says.
type answer struct {
	status, slot, pid, generation int
	client                        string
	body                          string
}

var answerLine = regexp.MustCompile(`^slot=(\d+) pid=(\d+) generation=(\d+) client=(\S+)\n`)

// dial connects to the balancer from a loopback address.
func (b *instance) dial(from netip.Addr) (*net.TCPConn, error) { return dialTo(from, b.addr) }

// dialTo connects to an address from a loopback address.
func dialTo(from netip.Addr, address string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn), nil
}

// request writes a request for path.
func request(conn net.Conn, path string) error {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", path)
	return err
}

// response reads a whole response.
func response(conn io.Reader) (a answer, err error) {
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return a, err
	}
	return readAnswer(resp)
}

// readAnswer reads a response to its end.
func readAnswer(resp *http.Response) (a answer, err error) {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	a.status, a.body = resp.StatusCode, string(body)
	if m := answerLine.FindStringSubmatch(a.body); m != nil {
		a.slot, _ = strconv.Atoi(m[1])
		a.pid, _ = strconv.Atoi(m[2])
		a.generation, _ = strconv.Atoi(m[3])
		a.client = m[4]
	} else if a.status == http.StatusOK {
		return a, fmt.Errorf("strange answer %q", a.body)
	}
	return a, nil
}

// get makes one request on a connection of its own.
func (b *instance) get(from netip.Addr, path string) (answer, error) {
	conn, err := b.dial(from)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := request(conn, path); err != nil {
		return answer{}, err
	}
	return response(conn)
}

// mustGet is get where it has to work.
func (b *instance) mustGet(from netip.Addr, path string) answer {
	b.t.Helper()
	a, err := b.get(from, path)
	if err != nil || a.status != http.StatusOK {
		b.t.Fatalf("GET %s from %v: %+v, %v", path, from, a, err)
	}
	return a
}
