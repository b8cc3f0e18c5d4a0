package trap

import (
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/launch"
	"github.com/handfast/handfast/master/polled"
)

// maxRoots bounds how many processes are looked at, with their descendants, to see whether the
// worker is ready.
const maxRoots = 64

// Config is what a worker's link needs.
type Config struct {
	// Listeners are the slot's, borrowed until Close; required. Each must be waited on for
	// the worker to be ready, except one of both families beside one of IPv4.
	Listeners []*os.File
	// IPv4 returns another listener of the slot, for IPv4 alone, and is called when a server
	// binds a socket of IPv4 and the listener that fits is one of IPv6 that takes IPv4 as
	// well. The file is borrowed until Close. Where such a listener is bound beside one of
	// both families, it gets all of IPv4. nil: the server gets the one that there is.
	IPv4   func(both *os.File) (*os.File, error)
	Drain  launch.Drain
	Logger hclog.Logger // nil: none
}

// Link is the master's side of one worker. It implements supervisor.Launcher. Two goroutines run
// for it, one that answers the filter and one that looks whether the worker is ready; Close
// ends both.
type Link struct {
	*launch.Drainer
	control *launch.Control
	asked   *notifications // from the child's hello on
	ipv4    func(both *os.File) (*os.File, error)
	log     hclog.Logger
	ready   chan struct{}
	left    chan struct{}
	ended   chan struct{} // closed by Close
	done    sync.WaitGroup

	mu        sync.Mutex
	listeners []*listener
	pids      []int
	leftErr   error
	hidden    error // why a process could not be looked into
	warned    map[string]bool
	closed    bool
}

// Open makes a link for a worker that is not yet started.
func Open(cfg Config) (*Link, error) { return open(cfg, launch.Trap) }

func open(cfg Config, mode launch.Mode) (*Link, error) {
	l := &Link{
		Drainer: launch.NewDrainer(cfg.Drain),
		ipv4:    cfg.IPv4,
		log:     cfg.Logger,
		ready:   make(chan struct{}),
		left:    make(chan struct{}),
		ended:   make(chan struct{}),
		warned:  make(map[string]bool),
	}
	if l.log == nil {
		l.log = hclog.NewNullLogger()
	}
	for _, file := range cfg.Listeners {
		ln, err := newListener(file)
		if err != nil {
			return nil, err
		}
		l.listeners = append(l.listeners, ln)
	}
	for _, both := range l.listeners {
		both.replaced = slices.ContainsFunc(l.listeners, both.yieldsTo)
	}
	control, err := launch.Open(mode)
	if err != nil {
		return nil, fmt.Errorf("trap: %w", err)
	}
	l.control = control
	l.done.Go(l.run)
	return l, nil
}

// Launch returns the command of a program that installs the filter and then becomes command.
func (l *Link) Launch(command []string) []string { return l.control.Command(command) }

// Files returns what the launch talks to us by; the command does not inherit it.
func (l *Link) Files() []*os.File { return l.control.Files() }

// Env returns nothing: the worker knows nothing of us.
func (l *Link) Env() []string { return nil }

// Ready is closed when a process of the worker waits for connections on every listener of
// the slot.
func (l *Link) Ready() <-chan struct{} { return l.ready }

// Left is closed when the worker cannot be given the slot's listeners. Err tells why: an
// *launch.Error if the filter could not be installed.
func (l *Link) Left() <-chan struct{} { return l.left }

// Err tells why the worker left. Ask only after Left is closed.
func (l *Link) Err() error { return l.leftErr }

// Drain tells the worker to finish. If it was never ready, the log tells how far it came.
func (l *Link) Drain() {
	l.Drainer.Drain()
	select {
	case <-l.ready:
	case <-l.left:
	case <-l.ended:
	default:
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, ln := range l.listeners {
			if !ln.replaced || ln.taken {
				l.log.Info("worker was not ready", "listen", ln.String(), "bound", ln.taken)
			}
		}
	}
}

// Close ends the link. Processes that go on and bind something then fail (ENOSYS).
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	close(l.ended)
	if l.asked != nil {
		l.asked.close()
	}
	l.mu.Unlock()
	l.control.Close()
	l.done.Wait()
	l.Wait()
}

// run answers the filter until no process has it any more, or Close.
func (l *Link) run() {
	pid, file, err := l.control.Hello()
	if err == nil {
		err = l.start(pid, file)
	}
	if err != nil {
		l.leave(err)
		return
	}
	var n notification
	for l.asked.next(&n) == nil {
		l.judge(&n)
	}
}

// start begins with what can be done once the child is there. It takes ownership of file.
func (l *Link) start(pid int, file *os.File) error {
	asked, err := newNotifications(file)
	if err != nil {
		return fmt.Errorf("trap: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		asked.close()
		return os.ErrClosed
	}
	l.asked = asked
	l.pids = []int{pid}
	l.done.Go(l.await)
	return nil
}

// await closes ready.
func (l *Link) await() {
	if polled.Wait(l.ended, l.roots, l.awaited, l.cannotSee) {
		close(l.ready)
	}
}

// leave says that the worker cannot be given what it asks for. After Close nobody hears.
func (l *Link) leave(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leftErr == nil && !l.closed {
		l.leftErr = err
		close(l.left)
	}
}

// cannotSee notes that a process of the worker cannot be looked into.
func (l *Link) cannotSee(err error) {
	l.mu.Lock()
	l.hidden = err
	l.mu.Unlock()
	l.warnOnce("the worker cannot be looked into; it must stay the master's user, or the master needs CAP_SYS_PTRACE", "err", err)
}

// warnOnce logs what a worker may cause again and again.
func (l *Link) warnOnce(message string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.warned[message] {
		l.warned[message] = true
		l.log.Warn(message, args...)
	}
}
