// Package servers_test runs servers that know nothing of handfast under the real command, as
// README.md says it, and tries what it promises of them.
package servers_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

const (
	slots      = 2
	clients    = 60
	fewClients = 30
	rounds     = 2
	parallel   = 8                     // clients that ask at the same time
	pause      = 50 * time.Millisecond // of each client under load: the CPU is to start servers
	timeout    = 4 * time.Minute       // keeps a test from hanging
	retryDelay = 100 * time.Millisecond
	nobody     = 65534
	// port is what files and commands here say.
	port = "8080"
)

// everything, if it is set, has all servers tried in every way. Else each is started, asked, and reloaded, as README.md
// says, and what is the same for all of them, or takes long, is tried with some.
var everything = os.Getenv("HANDFAST_TEST_SERVERS") == "all"

// server is one that knows nothing of us.
type server struct {
	name    string
	flags   string // of handfast run, before --
	command string
	needs   [][2]string // programs, and Debian's packages of them
	ask     func(c net.Conn) (text string, err error)
	build   func(t *testing.T, dir string) // puts what else is needed in dir
	ends    ending
	link    string // what the log says
	// Where the answer does not have the client's address, logged is the server's line about it, and
	// log the file of it, if that is not standard error.
	logged, log string
	replace     [2]string // in configurations

	env   []string // besides the usual
	light bool     // is tried with fewer clients, and no request is left half sent over a reload
	alone bool     // what it keeps is locked by one process: a reload fails, and the old ones go on
	slow  bool     // its start takes seconds of CPU time: what others show, too, is tried only with everything
}

// ending is what a server does with what it has when it is told to finish.
type ending int

const (
	graceful ending = iota // finishes it
	hasty                  // closes connections that it has accepted and not read a request from
)

// stage is a server that runs in each slot.
type stage struct {
	*server
	t         *testing.T
	dir       string
	address   string
	rounds    int // of all clients
	clients   int
	process   *trial.Process
	took      time.Duration // until all servers were ready, which nobody asked yet
	processes sync.Map      // the places of those that have answered, by pid
}

func TestServers(t *testing.T) {
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.try(t, nil)
		})
	}
}

// TestOthers: what is promised of servers holds for all that were tried.
func TestOthers(t *testing.T) {
	if os.Getenv("HANDFAST_TEST_SERVERS") == "" {
		t.Skip("in make slices")
	}
	if os.Getuid() != 0 {
		t.Skip("some start only as root")
	}
	for _, s := range others {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.try(t, nil)
		})
	}
}

// Without privileges there is no CAP_SYS_ADMIN for the filter, and none to look into processes. A reload needs neither for
// other things than the start does.
func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("all tests are without privileges")
	}
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.try(t, &syscall.Credential{Uid: nobody, Gid: nobody})
		})
	}
}

// TestActivation: those that can, take the slot's listener as systemd would pass it.
func TestActivation(t *testing.T) {
	for _, s := range inherit {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			st := s.start(t, nil)
			st.sticky(1, st.rounds)
			st.reload()
			st.end()
		})
	}
}

// try: each client stays in its slot and is seen with its own address; kill -9 harms nobody but
// whom the dead process had accepted; a reload harms nobody, if the server can finish.
func (s *server) try(t *testing.T, user *syscall.Credential) {
	st := s.start(t, user)
	if user != nil {
		st.rounds = 1 // has been tried
	}
	st.sticky(1, st.rounds)
	if user == nil && (!s.slow || everything) { // no privilege is needed to be killed
		st.kill()
	}
	if user != nil && !everything && !slices.Contains(sample, s.name) {
		st.process.Stop()
		return
	}
	st.reload()
	st.end()
}

// end: all is as it was before, but for the generation.
func (st *stage) end() {
	st.t.Helper()
	if st.alone {
		st.sticky(1, 1)
	} else {
		st.sticky(2, 1)
	}
	if st.logged != "" {
		st.seesClients()
	}
	st.process.Stop()
}

// start runs handfast with a server in each slot.
func (s *server) start(t *testing.T, user *syscall.Credential, more ...string) *stage {
	for _, need := range s.needs {
		trial.Need(t, need[0], need[1])
	}
	st := &stage{server: s, t: t, dir: folder(t, user), rounds: rounds, clients: clients}
	if s.light {
		st.rounds, st.clients = 1, fewClients
	}
	number := freePort(t)
	st.address = "127.0.0.1:" + number
	st.copyFiles(number)
	if s.build != nil {
		s.build(t, st.dir)
	}
	handfast := trial.Build(t, "github.com/handfast/handfast/cmd/handfast")
	args := []string{"run", "--admin", "off", "--workers", strconv.Itoa(slots), "--log-json", "--log-level", "debug",
		"--ready-timeout", fmt.Sprint(timeout), "--retry-delay", retryDelay.String(), "--max-retries", strconv.Itoa(int(timeout / retryDelay))}
	args = append(args, strings.Fields(s.flags)...)
	args = append(append(append(args, more...), "--"), strings.Fields(s.command)...)
	for i := range args {
		args[i] = strings.NewReplacer(port, number, "$PWD", st.dir).Replace(args[i])
	}
	cmd := exec.Command(handfast, args...)
	cmd.Dir = st.dir
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:/usr/sbin:/sbin:"+os.Getenv("PATH"), "HOME="+st.dir, trial.LightJava)
	for _, v := range s.env {
		cmd.Env = append(cmd.Env, strings.ReplaceAll(v, "$DIR", st.dir))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	began := time.Now()
	st.process = trial.StartCmd(t, cmd)
	t.Cleanup(func() {
		if st.process.ProcessState == nil { // servers do not notice the end of who has started them
			st.process.Stop()
		}
	})
	st.process.AwaitReady(slots)
	st.took = time.Since(began)
	if n := st.events("worker link chosen", func(e entry) bool { return e.Link == s.link }); n != 1 {
		t.Errorf("the link is not %s", s.link)
	}
	return st
}

// copyFiles copies what is here, with another port.
func (st *stage) copyFiles(number string) {
	err := os.CopyFS(st.dir, os.DirFS("."))
	if err != nil {
		st.t.Fatal(err)
	}
	replace := strings.NewReplacer(st.replace[0], st.replace[1], port, number)
	if st.replace[0] == "" {
		replace = strings.NewReplacer(port, number)
	}
	for _, pattern := range []string{"*.conf", "*.cfg", "*.js", "*.lua", "Caddyfile", "tomcat/conf/*.xml"} {
		paths, _ := filepath.Glob(filepath.Join(st.dir, pattern))
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err == nil {
				text = []byte(replace.Replace(string(text)))
				err = os.WriteFile(path, text, 0o644)
			}
			if err != nil {
				st.t.Fatal(err)
			}
		}
	}
}

// sticky: all clients, round after round, are answered by the right workers of a generation.
func (st *stage) sticky(generation, rounds int) {
	st.t.Helper()
	var spread [slots]atomic.Int32
	for range rounds {
		var wg sync.WaitGroup
		next := make(chan netip.Addr)
		for range parallel {
			wg.Go(func() {
				for client := range next {
					who, err := st.get(client)
					for began := time.Now(); errors.Is(err, errNotYet) && time.Since(began) < timeout; { // it listens before it can serve
						time.Sleep(notYet)
						who, err = st.get(client)
					}
					if err == nil && who.generation != generation {
						err = fmt.Errorf("client %v: generation %d, want %d", client, who.generation, generation)
					}
					if err != nil {
						st.t.Error(err)
						continue
					}
					spread[who.slot].Add(1)
				}
			})
		}
		for i := range st.clients {
			next <- source(i)
		}
		close(next)
		if wg.Wait(); st.t.Failed() {
			st.t.FailNow()
		}
	}
	for slot := range spread {
		if n := int(spread[slot].Load()); n < st.clients*rounds/slots/2 {
			st.t.Errorf("slot %d has answered %d of %d", slot, n, st.clients*rounds)
		}
	}
}

// kill: a client that is not of the dead worker's slot notices nothing, and one that is loses at most the one
// connection that was open.
func (st *stage) kill() {
	st.t.Helper()
	load := st.load()
	const victim = 1
	load.awaitAnswers("before the kill", 5, func(answer) bool { return true })
	pid, ready := 0, st.events("worker ready", func(e entry) bool { return e.Slot == victim })
	st.events("worker ready", func(e entry) bool {
		if e.Slot == victim {
			pid = e.PID
		}
		return true
	})
	syscall.Kill(-pid, syscall.SIGKILL)
	st.awaitWorker(victim, ready+1)
	load.awaitAnswers("after the kill", 5, func(answer) bool { return true })
	load.stop(func(slot int) int {
		if slot == victim {
			return 1
		}
		return 0
	})
}

// reload: everybody is served by the new generation in the end.
func (st *stage) reload() {
	st.t.Helper()
	load := st.load()
	load.awaitAnswers("before the reload", 5, func(answer) bool { return true })
	exited := st.events("worker exited", nil)
	finish := func() {}
	if st.ends == graceful {
		finish = st.begin()
	}
	st.process.Process.Signal(syscall.SIGUSR2)
	if st.alone {
		st.await("reload failed", 1)
		load.awaitAnswers("after the reload", 5, func(who answer) bool { return who.generation == 1 })
		load.stop(func(int) int { return 0 })
		return
	}
	st.await("reload finished", 1)
	finish()
	st.await("worker exited", exited+slots)
	load.awaitAnswers("after the reload", 5, func(who answer) bool { return who.generation == 2 })
	load.stop(func(int) int {
		if st.ends == graceful {
			return 0
		}
		return 1 // what its slot's old worker had accepted
	})
}

// begin sends the beginning of a request to the slot that is reloaded first. The rest is answered
// by the worker that has it, which has been told to finish by then.
func (st *stage) begin() (finish func()) {
	st.t.Helper()
	switch {
	case st.ask != nil, st.light,
		st.name == "go",       // waits 5 s for the end of a first request (net/http, closeIdleConns)
		st.name == "java",     // counts a request from its end on
		st.name == "gunicorn": // reads one request after the other
		return func() {}
	}
	i := 0
	for slotOf(source(i)) != 0 {
		i++
	}
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source(i), 0)), Timeout: timeout}
	conn, err := dialer.Dial("tcp", st.address)
	if err != nil {
		st.t.Fatal(err)
	}
	st.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(timeout))
	fmt.Fprintf(conn, "GET /who HTTP/1.1\r\nHost: test\r\n")
	// Later clients are accepted later.
	for range rounds {
		if _, err := st.get(source(i)); err != nil {
			st.t.Error(err)
		}
	}
	return func() {
		st.t.Helper()
		fmt.Fprintf(conn, "Connection: close\r\n\r\n")
		text, err := readHTTP(conn)
		if err == nil && strings.Contains(text, "generation=2") {
			err = errors.New("it is the new one")
		}
		if _, parseErr := st.parse(text, source(i)); parseErr != nil && !errors.Is(parseErr, errGone) {
			err = errors.Join(err, parseErr)
		}
		if err != nil {
			st.t.Errorf("a request that was begun before the reload: %v; the answer is %q", err, text)
		}
	}
}

// load is clients that ask one time after the other.
type load struct {
	*stage
	ended   atomic.Bool
	running sync.WaitGroup

	mu      sync.Mutex
	clients map[netip.Addr]*count
}

// count is what has become of one client.
type count struct {
	answers map[answer]int
	errs    []error
}

// load starts two clients of each slot.
func (st *stage) load() *load {
	l := &load{stage: st, clients: map[netip.Addr]*count{}}
	var of [slots]int
	for i := 0; len(l.clients) < 2*slots; i++ {
		client := netip.AddrFrom4([4]byte{127, 9, 1, byte(1 + i)})
		if slot := slotOf(client); of[slot] < 2 {
			of[slot]++
			l.clients[client] = &count{answers: map[answer]int{}}
		}
	}
	for client, count := range l.clients {
		l.running.Go(func() {
			for !l.ended.Load() {
				who, err := st.get(client)
				l.mu.Lock()
				if errors.Is(err, errGone) || errors.Is(err, errNotYet) {
					// Somebody has answered.
				} else if err != nil {
					count.errs = append(count.errs, err)
				} else {
					count.answers[who]++
				}
				l.mu.Unlock()
				time.Sleep(pause)
			}
		})
	}
	return l
}

// awaitAnswers waits until each client has had n more answers that f wants.
func (l *load) awaitAnswers(what string, n int, f func(answer) bool) {
	l.t.Helper()
	sum := func() map[netip.Addr]int {
		l.mu.Lock()
		defer l.mu.Unlock()
		all := map[netip.Addr]int{}
		for client, count := range l.clients {
			for who, n := range count.answers {
				if f(who) {
					all[client] += n
				}
			}
		}
		return all
	}
	before := sum()
	trial.Eventually(l.t, "answers "+what, func() bool {
		now := sum()
		for client := range l.clients {
			if now[client] < before[client]+n {
				return false
			}
		}
		return true
	})
}

// stop ends it. Of the connections of a client so many may have failed.
func (l *load) stop(mayFail func(slot int) int) {
	l.t.Helper()
	l.ended.Store(true)
	l.running.Wait()
	answers, failed := 0, 0
	for client, count := range l.clients {
		failed += len(count.errs)
		if len(count.errs) > 0 {
			l.t.Logf("may fail: %v", errors.Join(count.errs...))
		}
		for _, n := range count.answers {
			answers += n
		}
		if slot := slotOf(client); len(count.errs) > mayFail(slot) {
			l.t.Errorf("client %v of slot %d: %d failed, at most %d may: %v", client, slot, len(count.errs), mayFail(slot), errors.Join(count.errs...))
		}
	}
	l.t.Logf("%d answers, %d failed", answers, failed)
}

// answer is what a server says of itself.
type answer struct{ slot, generation int }

// get asks as a client, of whom the server must be the right one, and see the address.
func (st *stage) get(client netip.Addr) (answer, error) {
	start := time.Now()
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0)), Timeout: timeout}
	conn, err := dialer.Dial("tcp", st.address)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	ask := st.ask
	if ask == nil {
		ask = askHTTP
	}
	text, err := ask(conn)
	if err != nil {
		return answer{}, fmt.Errorf("client %v, after %v: %w", client, time.Since(start), err)
	}
	who, err := st.parse(text, client)
	if err == nil && who.slot != slotOf(client) {
		err = fmt.Errorf("it is of slot %d", slotOf(client))
	}
	if err != nil {
		return answer{}, fmt.Errorf("client %v: %w; the answer is %q", client, err, text)
	}
	return who, nil
}

// parse reads "slot=1 pid=2 generation=1 client=127.0.0.1". Of slot and pid one may be missing.
func (st *stage) parse(text string, client netip.Addr) (who answer, err error) {
	said := map[string]string{}
	for field := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(field, "=")
		said[name] = value
	}
	seen, err := netip.ParseAddr(said["client"])
	if err != nil || seen.Unmap() != client {
		return who, fmt.Errorf("the server does not see the client's address: %w", err)
	}
	number := func(name string) int {
		n, atoiErr := strconv.Atoi(said[name])
		err = errors.Join(err, atoiErr)
		return n
	}
	if said["slot"] == "" {
		if pid := number("pid"); err == nil {
			who, err = st.processIs(pid)
		}
		return who, err
	}
	who.slot, who.generation = number("slot"), number("generation")
	return who, err
}

// errGone: a process has answered and ended before it could be asked whose it is.
var errGone = errors.New("the process that has answered has gone")

// processIs returns the place of a worker by one of its processes. The log may say it a moment
// later.
func (st *stage) processIs(pid int) (who answer, err error) {
	if found, ok := st.processes.Load(pid); ok {
		return found.(answer), nil
	}
	above := ancestors(pid) // one of them is the worker
	if !slices.Contains(above, st.process.Process.Pid) {
		return who, fmt.Errorf("%w: %d, or who has started it", errGone, pid)
	}
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(pause) {
		if st.events("worker started", func(e entry) bool {
			found := slices.Contains(above, e.PID)
			if found {
				who = answer{e.Slot, e.Generation}
			}
			return found
		}) > 0 {
			st.processes.Store(pid, who)
			return who, nil
		}
	}
	return who, fmt.Errorf("process %d is of no worker", pid)
}

func slotOf(client netip.Addr) int { return hash.DefaultConfig().Key(client).Slot(slots) }

// source is the i-th client's address.
func source(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 8, byte(i % 16), byte(1 + i)})
}

// entry is a line of the log.
type entry struct {
	Message    string `json:"@message"`
	Link       string `json:"link"`
	Slot       int    `json:"slot"`
	PID        int    `json:"pid"`
	Generation int    `json:"generation"`
}

// events returns how many lines there are with a message, of those that f wants.
func (st *stage) events(message string, f func(entry) bool) int {
	return st.process.Count(is(message, f))
}

// is tells the lines of events. Most lines are others, and are not worth more than a look.
func is(message string, f func(entry) bool) func(line string) bool {
	return func(line string) bool {
		var e entry
		return strings.Contains(line, message) && json.Unmarshal([]byte(line), &e) == nil && e.Message == message && (f == nil || f(e))
	}
}

// awaitWorker waits until a slot has had n workers that were ready.
func (st *stage) awaitWorker(slot, n int) {
	st.t.Helper()
	st.process.Await("another worker", n, is("worker ready", func(e entry) bool { return e.Slot == slot }))
}

func (st *stage) await(message string, n int) {
	st.t.Helper()
	st.process.Await(message, n, is(message, nil))
}

// seesClients: the server logs the address of each client, perhaps a moment after its answer.
func (st *stage) seesClients() {
	st.t.Helper()
	for i := range st.clients {
		line := fmt.Sprintf(st.logged, source(i))
		trial.Eventually(st.t, fmt.Sprint(line, st.countLogged(line)), func() bool { return st.countLogged(line) == st.rounds+1 })
	}
}

func (st *stage) countLogged(text string) int {
	if st.log == "" {
		return st.process.Count(func(line string) bool { return strings.Contains(line, text) })
	}
	file, err := os.ReadFile(filepath.Join(st.dir, st.log))
	if err != nil {
		st.t.Fatal(err)
	}
	return strings.Count(string(file), text)
}

// folder makes a folder that everybody can read, and this user can write.
func folder(t *testing.T, user *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "servers")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err = os.Chmod(dir, 0o755); err == nil && user != nil {
		err = os.Chown(dir, int(user.Uid), int(user.Gid))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// freePort returns a port that nobody has on any address, and that the kernel does not give
// out, nor trial.FreeAddress.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := 30_000 + rand.IntN(2_768)
		number := strconv.Itoa(port)
		if ln, err := net.Listen("tcp", ":"+number); err == nil {
			ln.Close()
			if trial.Reserve(port) { // another test may have it, and not listen yet
				return number
			}
		}
	}
	t.Fatal("no port is free")
	return ""
}

// errRefused: handfast has answered, for want of a worker.
var errRefused = errors.New("502 Bad Gateway")
