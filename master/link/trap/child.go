package trap

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/launch"
)

// maxRoots bounds how many processes are looked at, with their descendants, to see whether the
// worker is ready.
const maxRoots = 64

// child is what both kinds of links have: the launch, the filter that asks, and what became of
// it.
type child struct {
	*launch.Drainer
	control *launch.Control
	asked   *Notifications // from the child's hello on
	log     hclog.Logger
	ready   chan struct{}
	left    chan struct{}
	ended   chan struct{} // closed by Close
	done    sync.WaitGroup

	mu      sync.Mutex
	pids    []int
	own     []OwnAddress
	leftErr error
	hidden  error // why a process could not be looked into
	warned  map[string]bool
	closed  bool
	refused []uint64 // calls that fail when the worker is told to finish
	told    bool     // it was
}

func newChild(drain launch.Drain, log hclog.Logger) child {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return child{
		Drainer: launch.NewDrainer(drain),
		log:     log,
		ready:   make(chan struct{}),
		left:    make(chan struct{}),
		ended:   make(chan struct{}),
		warned:  make(map[string]bool),
	}
}

// Launch returns the command of a program that installs the filter and then becomes command.
func (l *child) Launch(command []string) []string { return l.control.Command(command) }

// Files returns what the launch talks to us by; the command does not inherit it.
func (l *child) Files() []*os.File { return l.control.Files() }

// Env returns nothing: the worker knows nothing of us.
func (l *child) Env() []string { return nil }

// Ready is closed when a process of the worker waits for connections: on every listener of
// the slot, if that has some.
func (l *child) Ready() <-chan struct{} { return l.ready }

// Ping implements supervisor.Link: a program that knows nothing of us cannot answer.
func (l *child) Ping() bool { return true }

// Left is closed when the worker cannot be given what it asks for. Err tells why: an
// *launch.Error if the filter could not be installed.
func (l *child) Left() <-chan struct{} { return l.left }

// Err tells why the worker left. Ask only after Left is closed.
func (l *child) Err() error { return l.leftErr }

// Close ends the link. Processes that go on and bind something then fail (ENOSYS).
func (l *child) Close() {
	l.mu.Lock()
	l.closed = true
	close(l.ended)
	if l.asked != nil {
		l.asked.Close()
	}
	l.mu.Unlock()
	l.control.Close()
	l.done.Wait()
	l.End()
}

// hello waits for the child, and has await run from then on.
func (l *child) hello(await func()) error {
	pid, file, err := l.control.Hello()
	if err != nil {
		return err
	}
	asked, err := NewNotifications(file)
	if err != nil {
		return fmt.Errorf("trap: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		asked.Close()
		return os.ErrClosed
	}
	l.asked = asked
	l.pids = []int{pid}
	l.done.Go(await)
	return nil
}

// roots returns processes of the worker: the first one, and those that took a listener, since
// they may have left the first one's family.
func (l *child) roots() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.pids)
}

// isRoot notes a thread's process as one of roots. mu is held.
func (l *child) isRoot(tid int) {
	if len(l.pids) < maxRoots && !slices.Contains(l.pids, tid) {
		l.pids = append(l.pids, tid)
	}
}

// refuse says that the worker cannot be given what it asks for in a call of bind, which fails when
// that was heard (told): else its process could end first, and nobody would know why.
func (l *child) refuse(id uint64, err error) {
	l.mu.Lock()
	l.refused = append(l.refused, id)
	told := l.told
	l.mu.Unlock()
	l.leave(err)
	if told {
		l.endRefused()
	}
}

// endRefused has calls fail that were refused. It is called when the worker is told to finish.
func (l *child) endRefused() {
	l.mu.Lock()
	refused := l.refused
	l.refused, l.told = nil, true
	l.mu.Unlock()
	for _, id := range refused {
		l.asked.Answer(id, unix.EADDRNOTAVAIL)
	}
}

// leave says that the worker cannot be given what it asks for. After Close nobody hears.
func (l *child) leave(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leftErr == nil && !l.closed {
		l.leftErr = err
		close(l.left)
	}
}

// cannotSee notes that a process of the worker cannot be looked into.
func (l *child) cannotSee(err error) {
	l.mu.Lock()
	l.hidden = err
	l.mu.Unlock()
	l.warnOnce("the worker cannot be looked into; it must stay the master's user, or the master needs CAP_SYS_PTRACE", "err", err)
}

// warnOnce logs what a worker may cause again and again.
func (l *child) warnOnce(message string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.warned[message] {
		l.warned[message] = true
		l.log.Warn(message, args...)
	}
}

// OwnAddress is an address other than the balancer's that a worker has asked for; whether it got it,
// nobody knows.
type OwnAddress struct {
	Network string // "tcp" or "udp"
	netip.AddrPort
}

// maxOwn is how many of those are remembered.
const maxOwn = 32

// OwnAddresses returns those that the worker has asked for, in this order.
func (l *child) OwnAddresses() []OwnAddress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.own)
}

// noteOwn remembers an address that a thread asks for.
func (l *child) noteOwn(bound netip.AddrPort, caller Caller) {
	if bound.Port() == 0 {
		return
	}
	protocol, _ := caller.Protocol()
	protocol = strings.TrimSuffix(strings.TrimPrefix(protocol, "MP"), "v6")
	if protocol != "TCP" && protocol != "UDP" {
		return
	}
	at := OwnAddress{strings.ToLower(protocol), bound}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.own) < maxOwn && !slices.Contains(l.own, at) {
		l.own = append(l.own, at)
	}
}
