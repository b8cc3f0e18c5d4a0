// Package trial runs an example worker under the real command and tries what every
// worker has to do: stay with its clients, and lose none of them.
package trial

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handfast/handfast/hash"
)

// Workers is how many workers Balance runs.
const Workers = 3

// timeout bounds what takes seconds on a quiet machine. It only keeps a test from hanging: on a busy one a server may take
// minutes.
const timeout = 4 * time.Minute

// Worker tries a worker that answers each request with the line that Answer holds.
func Worker(t *testing.T, command ...string) {
	for name, try := range map[string]func(*testing.T, []string){"Sticky": sticky, "Reload": reload, "Leave": leave} {
		t.Run(name, func(t *testing.T) { try(t, command) })
	}
}

// Process is a program under test.
type Process struct {
	*exec.Cmd
	t     *testing.T
	ended chan struct{} // closed when it, and all that it has started, have ended

	mu     sync.Mutex
	output []string // its lines
}

// Start runs a program until the test ends, in a process group of its own: what it has
// started is killed with it. It gets SIGTERM when the test does not come to its end.
func Start(t *testing.T, name string, args ...string) *Process {
	t.Helper()
	return StartCmd(t, exec.Command(name, args...))
}

// StartCmd is Start for a program of which more is to be said. Its output is collected.
func StartCmd(t *testing.T, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, t: t, ended: make(chan struct{})}
	if p.SysProcAttr == nil {
		p.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.SysProcAttr.Setpgid, p.SysProcAttr.Pdeathsig = true, syscall.SIGTERM
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout, p.Stderr = write, write
	err = p.Start()
	write.Close()
	if err != nil {
		read.Close()
		t.Fatal(err)
	}
	go p.collect(read)
	t.Cleanup(func() {
		if p.ProcessState == nil {
			syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
			p.Wait()
		}
		p.awaitEnd()
		if p.mu.Lock(); t.Failed() {
			t.Log(strings.Join(p.output, "\n"))
		}
		p.mu.Unlock()
	})
	return p
}

// collect reads until the last process that has inherited the pipe ends.
func (p *Process) collect(output *os.File) {
	defer close(p.ended)
	defer output.Close()
	for scanner := bufio.NewScanner(output); scanner.Scan(); {
		p.mu.Lock()
		p.output = append(p.output, scanner.Text())
		p.mu.Unlock()
	}
}

// Await waits until f has found n lines. It is asked for all of them again when there are more.
func (p *Process) Await(what string, n int, f func(line string) bool) {
	p.t.Helper()
	asked := -1
	Eventually(p.t, what, func() bool {
		ended := isClosed(p.ended) // before the last lines are looked at
		p.mu.Lock()
		lines := len(p.output)
		p.mu.Unlock()
		if lines != asked {
			asked = lines
			if p.Count(f) >= n {
				return true
			}
		}
		if ended {
			p.t.Fatalf("%s: %s has ended", what, filepath.Base(p.Path))
		}
		return false
	})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Count returns how many lines f finds in what was written so far.
func (p *Process) Count(f func(line string) bool) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.output {
		if f(line) {
			n++
		}
	}
	return n
}

// AwaitRound returns the round that clients end n rounds after now; the first of these may be under way. They say each in a line
// of JSON of its own that begins with its number, from 1: {"round":1,…}.
func AwaitRound[Round any](clients *Process, n int) (last Round) {
	clients.t.Helper()
	isRound := func(line string) bool { return strings.HasPrefix(line, `{"round":`) }
	for ended := clients.Count(isRound); n > 0; n-- { // each is given its time
		ended++
		clients.Await(fmt.Sprint("round ", ended), ended, isRound)
	}
	clients.Count(func(line string) bool { return isRound(line) && json.Unmarshal([]byte(line), &last) == nil })
	return last
}

// Finish waits for its end, and wants exit status 0.
func (p *Process) Finish() {
	p.t.Helper()
	if p.awaitEnd(); p.t.Failed() {
		p.t.FailNow()
	}
	if err := p.Wait(); err != nil {
		p.t.Fatalf("%s: %v, want exit status 0", strings.Join(p.Args, " "), err)
	}
}

func (p *Process) awaitEnd() {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(timeout):
		p.t.Errorf("processes are left after %v", timeout)
	}
}

// Eventually polls until ok. It asks ever more rarely: asking costs the time of what it waits for.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	const most = 50 * time.Millisecond
	pause := 2 * time.Millisecond
	for start := time.Now(); !ok(); time.Sleep(pause) {
		if time.Since(start) > timeout {
			t.Fatalf("%s: not within %v", what, timeout)
		}
		pause = min(pause*5/4, most)
	}
}

// Balance runs command as the workers of handfast, and returns its address when all
// are ready.
func Balance(t *testing.T, command ...string) (p *Process, address string) {
	t.Helper()
	return BalanceWith(t, nil, command...)
}

// BalanceWith is Balance with more flags of handfast run.
func BalanceWith(t *testing.T, flags []string, command ...string) (p *Process, address string) {
	t.Helper()
	return BalanceAt(t, "127.0.0.1:0", flags, command...)
}

// BalanceAt is BalanceWith for workers that must know where clients come to: it is listen.
func BalanceAt(t *testing.T, listen string, flags []string, command ...string) (p *Process, address string) {
	t.Helper()
	handfast := Build(t, "github.com/handfast/handfast/cmd/handfast")
	args := []string{"run", "--admin", "off", "--listen", listen, "--workers", strconv.Itoa(Workers), "--log-json"}
	p = Start(t, handfast, slices.Concat(args, flags, []string{"--"}, command)...)
	p.Await("listening", 1, func(line string) bool {
		var entry struct {
			Message string `json:"@message"`
			Address string `json:"address"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Message == "listening" {
			address = entry.Address
		}
		return address != ""
	})
	p.AwaitReady(Workers)
	return p, address
}

// given are the ports that tests of this process were given: each is one test's, which may listen later.
var given sync.Map

// Reserve tells whether a port was given to no test of this process before, and gives it to the caller.
func Reserve(port int) bool {
	_, taken := given.LoadOrStore(port, true)
	return !taken
}

// FreeAddress returns a loopback address and port where nobody listens. Since the
// address is one of a million, and the port none that the kernel gives out, nobody will
// before it is used.
func FreeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		host := netip.AddrFrom4([4]byte{127, byte(64 + rand.IntN(64)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
		port := 10_000 + rand.IntN(20_000)
		address := netip.AddrPortFrom(host, uint16(port)).String()
		if ln, err := net.Listen("tcp", address); err == nil {
			ln.Close()
			if Reserve(port) {
				return address
			}
		}
	}
	t.Fatal("no address is free")
	return ""
}

// Need finds a program of a package of Debian's, also where the path of ordinary users
// does not lead. Who has none may skip the test, but not continuous integration.
func Need(t *testing.T, program, pkg string) (path string) {
	t.Helper()
	notShort(t)
	for _, candidate := range []string{program, "/usr/sbin/" + program, "/usr/local/sbin/" + program} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	missing := fmt.Sprintf("%s is not installed; apt-get install %s", program, pkg)
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// Python is Debian's, which has the modules of its packages.
const Python = "/usr/bin/python3"

// NeedModule is Need for a module of Python's.
func NeedModule(t *testing.T, module, pkg string) {
	t.Helper()
	if exec.Command(Need(t, Python, "python3"), "-c", "import "+module).Run() == nil {
		return
	}
	missing := fmt.Sprintf("%s is not installed; apt-get install %s", module, pkg)
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
}

// AwaitReady waits until so many workers were ready since the start.
func (p *Process) AwaitReady(n int) {
	p.t.Helper()
	p.Await("ready", n, func(line string) bool { return strings.Contains(line, `"worker ready"`) })
}

// AwaitListening waits until address accepts connections.
func (p *Process) AwaitListening(address string) {
	p.t.Helper()
	Eventually(p.t, "listening on "+address, func() bool {
		if isClosed(p.ended) {
			p.t.Fatalf("%s has ended and does not listen", filepath.Base(p.Path))
		}
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// Stop sends SIGTERM and wants exit status 0 and no process left.
func (p *Process) Stop() {
	p.t.Helper()
	p.StopWith(syscall.SIGTERM)
}

// StopWith is Stop for a program that takes another signal.
func (p *Process) StopWith(sig syscall.Signal) {
	p.t.Helper()
	p.Process.Signal(sig)
	if err := p.Wait(); err != nil && !p.crashesAtItsEnd() {
		p.t.Errorf("%s: %v, want exit status 0", filepath.Base(p.Path), err)
	}
	p.awaitEnd()
}

// crashesAtItsEnd: HAProxy 2.6.12 was seen to: SIGSEGV after it has said that all its proxies
// have stopped. Nobody is served by it any more.
func (p *Process) crashesAtItsEnd() bool {
	status, ok := p.ProcessState.Sys().(syscall.WaitStatus)
	stopped := p.Count(func(line string) bool { return strings.Contains(line, "Proxy <HTTPCLIENT> stopped") })
	return ok && status.Signal() == syscall.SIGSEGV && filepath.Base(p.Path) == "haproxy" && stopped > 0
}

// Answer is what an example worker says of itself and of its client.
type Answer struct {
	Slot, PID, Generation int
	Client                string
}

func parse(text string) (a Answer, err error) {
	_, err = fmt.Sscanf(text, "slot=%d pid=%d generation=%d client=%s\n", &a.Slot, &a.PID, &a.Generation, &a.Client)
	return a, err
}

// ClientAt returns an HTTP client with an address of its own. It keeps connections
// alive until CloseIdleConnections.
func ClientAt(source netip.Addr) *http.Client {
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
	return &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}, Timeout: timeout}
}

// Get makes a request to an example worker.
func Get(client *http.Client, address string) (Answer, error) {
	response, err := client.Get("http://" + address)
	if err != nil {
		return Answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("%s %q, error %v", response.Status, body, err)
	}
	return parse(string(body))
}

// Loopback is the i-th address to connect from, 1 to 254.
func Loopback(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, byte(i)}) }

// sticky: each client stays with the worker in its slot, over keep-alive and
// over connections, and the worker is told the client's address.
func sticky(t *testing.T, command []string) {
	p, address := Balance(t, command...)
	config := hash.DefaultConfig()
	pids := map[int]int{}
	for i := 1; i <= 40; i++ {
		client, source := ClientAt(Loopback(i)), Loopback(i)
		slot := config.Key(source).Slot(Workers)
		for range 3 {
			for range 2 {
				got, err := Get(client, address)
				if err != nil {
					t.Fatal(err)
				}
				if pids[slot] == 0 {
					pids[slot] = got.PID
				}
				if want := (Answer{slot, pids[slot], 1, source.String()}); got != want {
					t.Errorf("client %s: %+v, want %+v", source, got, want)
				}
			}
			client.CloseIdleConnections()
		}
	}
	if len(pids) != Workers {
		t.Errorf("clients are in slots %v, want all %d", pids, Workers)
	}
	p.Stop()
}

// breath is what a client takes between two requests: workers are to start meanwhile.
const breath = 2 * time.Millisecond

// traffic sends requests, each on a connection of its own, until stopped. stop
// returns how many were answered; none may fail.
func traffic(t *testing.T, address string) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	answered := make(chan int)
	for i := range 2 {
		go func() {
			n := 0
			for ; ctx.Err() == nil; n++ {
				client := ClientAt(Loopback(1 + (2*n+i)%40))
				if _, err := Get(client, address); err != nil {
					t.Error(err)
				}
				client.CloseIdleConnections()
				time.Sleep(breath)
			}
			answered <- n
		}()
	}
	return sync.OnceValue(func() int { cancel(); return <-answered + <-answered })
}

// pace is how often a request grows that has been begun: workers close connections of clients
// that are silent for long.
const pace = 3 * time.Second

// begun is a request of which a part was sent. It grows until wantFinish.
type begun struct {
	net.Conn
	stop func() // it grows no more
}

// grow sends a line now and then until end.
func (b *begun) grow(end <-chan struct{}) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
			fmt.Fprintf(b, "X-%d: not silent for long\r\n", n)
		case <-end:
			return
		}
	}
}

// begin begins a request, and returns also the answer to another one of the same client: since
// that came later, the first one is with the worker.
func begin(t *testing.T, client *http.Client, address string) (*begun, Answer) {
	t.Helper()
	conn, err := client.Transport.(*http.Transport).DialContext(context.Background(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: a\r\n")
	end := make(chan struct{})
	var growing sync.WaitGroup
	b := &begun{Conn: conn, stop: sync.OnceFunc(func() { close(end); growing.Wait() })}
	growing.Go(func() { b.grow(end) })
	t.Cleanup(func() { conn.Close(); b.stop() })
	a, err := Get(client, address)
	if err != nil {
		t.Fatal(err)
	}
	client.CloseIdleConnections()
	return b, a
}

// wantFinish sends the rest of the request, which that worker must Answer.
func (b *begun) wantFinish(t *testing.T, want Answer) {
	t.Helper()
	b.stop()
	fmt.Fprintf(b, "Connection: close\r\n\r\n")
	response, err := io.ReadAll(b)
	_, body, _ := strings.Cut(string(response), "\r\n\r\n")
	if got, parseErr := parse(body); got != want || parseErr != nil {
		t.Errorf("open request: %+v, errors %v, %v; want %+v", got, err, parseErr, want)
	}
}

// reload: SIGUSR2 replaces all workers and no request fails. One that was begun
// before is answered by the worker that has it.
func reload(t *testing.T, command []string) {
	p, address := Balance(t, command...)
	client := ClientAt(Loopback(1))
	request, before := begin(t, client, address)
	stop := traffic(t, address)
	defer stop()
	p.Process.Signal(syscall.SIGUSR2)
	p.AwaitReady(2 * Workers)
	after, err := Get(client, address)
	if err != nil || after.Slot != before.Slot || after.PID == before.PID || after.Generation != 2 {
		t.Errorf("after the reload: %+v, error %v; before: %+v", after, err, before)
	}
	client.CloseIdleConnections()
	request.wantFinish(t, before)
	t.Logf("%d requests", stop())
	p.Stop()
}

// leave: SIGTERM makes a worker leave. Its slot gets another one and no request
// fails; it answers what was begun, and ends with status 0.
func leave(t *testing.T, command []string) {
	p, address := Balance(t, command...)
	client := ClientAt(Loopback(1))
	request, before := begin(t, client, address)
	stop := traffic(t, address)
	defer stop()
	syscall.Kill(before.PID, syscall.SIGTERM)
	p.AwaitReady(Workers + 1)
	after, err := Get(client, address)
	if err != nil || after.Slot != before.Slot || after.PID == before.PID || after.Generation != 1 {
		t.Errorf("after the worker left: %+v, error %v; before: %+v", after, err, before)
	}
	client.CloseIdleConnections()
	request.wantFinish(t, before)
	p.Await("end of the worker", 1, func(line string) bool {
		return strings.Contains(line, `"worker exited"`) && strings.Contains(line, fmt.Sprintf(`"pid":%d`, before.PID)) &&
			strings.Contains(line, `"status 0"`)
	})
	t.Logf("%d requests", stop())
	p.Stop()
}
