package master

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// journal is a log that tests read.
type journal struct{ fdtest.Log }

// logger logs into the journal, without times.
func (j *journal) logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Output: j, DisableTime: true, Level: hclog.Info})
}

// lines returns those that have a text.
func (j *journal) lines(with string) (all []string) {
	for line := range strings.Lines(j.String()) {
		if strings.Contains(line, with) {
			all = append(all, strings.TrimSpace(line))
		}
	}
	return all
}

// expect wants each of the texts in the journal, in this order.
func (j *journal) expect(t *testing.T, want ...string) {
	t.Helper()
	rest := j.String()
	for _, w := range want {
		_, after, found := strings.Cut(rest, w)
		if !found {
			t.Errorf("the log has no %q, or not in that order:\n%s", w, j)
			return
		}
		rest = after
	}
}

// crew starts workers that live in this process: each has the worker's end of a mailbox.
type crew struct {
	*testing.T
	lazy   atomic.Bool // those that are started now are not ready by themselves
	deaf   atomic.Bool // they do not end when they are to finish
	self   bool        // they have the number of this process
	fails  error       // why none can be started
	report *fdpass.Report

	mu  sync.Mutex
	all []*fakeWorker
}

// fakeWorker answers each connection with its slot and number, and ends when its mailbox does.
type fakeWorker struct {
	crew    *crew
	name    string
	pid     int
	route   string // the token by which sessions name it
	mailbox *fdpass.Conn
	exit    chan supervisor.Exit
	once    sync.Once
	signals chan syscall.Signal
}

// firstPID is the number of the first worker of a crew: no process has it.
const firstPID = 1 << 30

// start is supervisor.Config's.
func (c *crew) start(spec supervisor.Spec) (supervisor.Process, error) {
	if c.fails != nil {
		return nil, c.fails
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &fakeWorker{crew: c, pid: firstPID + len(c.all), exit: make(chan supervisor.Exit, 1), signals: make(chan syscall.Signal, 10)}
	if c.self {
		w.pid = os.Getpid()
	}
	for _, v := range spec.Env {
		if slot, is := strings.CutPrefix(v, "HANDFAST_SLOT="); is {
			w.name = fmt.Sprintf("%s#%d", slot, len(c.all))
		}
		if token, is := strings.CutPrefix(v, fdpass.EnvRoute+"="); is {
			w.route = token
		}
	}
	fd, err := unix.FcntlInt(spec.Files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if w.mailbox, err = fdpass.NewConn(os.NewFile(uintptr(fd), "mailbox")); err != nil {
		return nil, err
	}
	c.all = append(c.all, w)
	if !c.lazy.Load() {
		w.ready()
	}
	go w.run()
	return w, nil
}

// worker returns the nth that was started.
func (c *crew) worker(n int) *fakeWorker {
	c.Helper()
	fdtest.Eventually(c, fmt.Sprintf("worker %d is started", n), func() bool { return c.count() > n })
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[n]
}

func (c *crew) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all)
}

func (w *fakeWorker) ready() {
	if r := w.crew.report; r != nil {
		fdtest.Check(w.crew, w.mailbox.TrySendReport(*r))
	}
	if err := w.mailbox.Send(fdpass.TypeReady, nil); err != nil {
		w.crew.Error(err)
	}
}

func (w *fakeWorker) run() {
	var m fdpass.Message
	for {
		if err := w.mailbox.Receive(&m); err != nil {
			break
		}
		for _, h := range m.Handoffs {
			unix.Write(h.FD, []byte(w.name+"\n"))
			fdpass.CloseConnections(h.FD)
		}
	}
	if !w.crew.deaf.Load() {
		w.end(supervisor.Exit{})
	}
}

// end ends the process.
func (w *fakeWorker) end(exit supervisor.Exit) {
	w.once.Do(func() {
		w.mailbox.Close()
		w.exit <- exit
	})
}

func (w *fakeWorker) PID() int { return w.pid }

func (w *fakeWorker) Signal(sig syscall.Signal) {
	w.signals <- sig
	w.end(supervisor.Exit{Code: -1, Signal: sig.String()})
}

func (w *fakeWorker) Await() supervisor.Exit {
	exit := <-w.exit
	w.exit <- exit
	return exit
}

func (w *fakeWorker) Rest() []int           { return nil }
func (w *fakeWorker) Wait() supervisor.Exit { return w.Await() }

// newConfig returns a configuration for one slot, whose workers are a crew.
func newConfig(t *testing.T) (Config, *crew, *journal) {
	t.Helper()
	log, workers := new(journal), &crew{T: t}
	cfg := Config{Balancer: balancer.DefaultConfig(), Supervisor: supervisor.DefaultConfig(), Name: "test", Version: "1", Logger: log.logger()}
	cfg.Balancer.RetryDelay, cfg.Balancer.MaxRetries = 10*time.Millisecond, 1000
	cfg.Supervisor.Command, cfg.Supervisor.Workers = []string{"server"}, 1
	cfg.Supervisor.Start = workers.start
	cfg.Supervisor.Probation = 0
	return cfg, workers, log
}

// play is a Master that runs.
type play struct {
	*testing.T
	*Master
	at   string
	kill context.CancelFunc
	ran  chan error
}

// run runs a Master, which the test ends at last.
func run(t *testing.T, cfg Config) *play {
	t.Helper()
	if len(cfg.Listeners) == 0 && !cfg.kernelRoutes() {
		cfg.Listeners = []net.Listener{listen(t)}
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, kill := context.WithCancel(context.Background())
	p := &play{t, m, m.route.addresses()[0].String(), kill, make(chan error, 1)}
	go func() { p.ran <- m.Run(ctx) }()
	t.Cleanup(func() {
		kill()
		if p.ran != nil {
			<-p.ran
		}
	})
	return p
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := balancer.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// isReady waits until all slots have workers.
func (p *play) isReady() {
	p.Helper()
	fdtest.Eventually(p, "the master is ready", func() bool { s := p.Status(); return s.Ready })
}

// ends returns what Run has returned.
func (p *play) ends() error {
	p.Helper()
	err := fdtest.Receive(p.T, "the end of Run", p.ran)
	p.ran = nil
	return err
}

// dial connects a client.
func (p *play) dial() net.Conn {
	p.Helper()
	c, err := net.Dial("tcp", p.at)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { c.Close() })
	return c
}

// answer returns the first line that a client gets.
func (p *play) answer(c net.Conn) string {
	p.Helper()
	c.SetDeadline(time.Now().Add(fdtest.Patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		p.Errorf("no answer: %v", err)
	}
	return strings.TrimSpace(line)
}

// asks returns what a new client is answered.
func (p *play) asks() string {
	p.Helper()
	c := p.dial()
	defer c.Close()
	return p.answer(c)
}

// fakeRoute is a route that gives nobody to any slot.
type fakeRoute struct {
	supervisor.Slots
	at      []netip.AddrPort
	kernel  bool
	of      []*balancer.Balancer
	queued  map[int]int
	openNow []int
	cameNow []uint64
}

func addresses(texts ...string) (all []netip.AddrPort) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddrPort(text))
	}
	return all
}

func (r *fakeRoute) String() string                  { return "fake" }
func (r *fakeRoute) addresses() []netip.AddrPort     { return r.at }
func (r *fakeRoute) sockets() []string               { return nil }
func (r *fakeRoute) handleEvent(supervisor.Event)    {}
func (r *fakeRoute) close(context.Context)           {}
func (r *fakeRoute) balancers() []*balancer.Balancer { return r.of }
func (r *fakeRoute) acceptsAll() bool                { return !r.kernel }
func (r *fakeRoute) queue(slot int) (int, bool)      { return r.queued[slot], r.kernel }
func (r *fakeRoute) save(*reexec.Bundle, *saved)     {}
func (r *fakeRoute) openBySlot() []int               { return r.openNow }
func (r *fakeRoute) came() ([]uint64, uint64)        { return r.cameNow, 7 }
func (r *fakeRoute) sample()                         {}

func (r *fakeRoute) saveCounts(*reexec.Bundle) *kernelroute.SavedCounts { return nil }

func (r *fakeRoute) open(supervisor.Seat, func(*kernelroute.Lease) (*workerLink, error)) (supervisor.Link, error) {
	panic("not asked")
}
func (r *fakeRoute) reopen(int, func(*kernelroute.Lease) (*workerLink, error)) (supervisor.Link, error) {
	panic("not asked")
}
func (r *fakeRoute) serve(accepting, _ context.Context, _ time.Duration) error {
	<-accepting.Done()
	return nil
}

var _ route = (*fakeRoute)(nil)

// newFake returns a Master of some kind of link that clients reach at addresses, and which nobody runs.
func newFake(kind LinkKind, at ...string) (*Master, *journal) {
	log := new(journal)
	return &Master{kind: kind.row(), link: kind, balancer: new(balancer.Balancer), route: &fakeRoute{at: addresses(at...)}, log: log.logger(), few: log.logger(), stop: make(chan struct{}), ending: make(chan struct{})}, log
}

func group(t *testing.T) *reuseport.Group {
	t.Helper()
	g, err := reuseport.Listen(t.Context(), "127.0.0.1:0", balancer.DefaultConfig().Clients.Hash, 1)
	if err != nil {
		t.Fatal(err)
	}
	return g
}
