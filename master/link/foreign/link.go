package foreign

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/seccomp"
)

// maxRoots bounds how many processes are looked at, with their descendants, to see whether the
// worker is ready.
const maxRoots = 64

// Link is the part that both kinds of links have: the launch, the filter's notifications, and whether the
// worker is ready or has left. A link embeds it, and answers Notifs from Hello on.
type Link struct {
	*launch.Drainer
	Notifs  *seccomp.Notifications // nil before Hello
	control *launch.Control
	log     hclog.Logger
	ready   chan struct{}
	isReady sync.Once
	left    chan struct{}
	ended   chan struct{} // closed by Close
	running sync.WaitGroup

	mu       sync.Mutex
	pids     []int
	own      []OwnAddress
	leftErr  error
	hidden   error // why a process could not be looked into, or a call not be answered
	warned   map[string]bool
	closed   bool
	refused  []uint64 // calls of bind that fail when the worker is told to finish
	draining bool     // it was
}

// Open makes a link for a worker that is not yet started.
func Open(mode launch.Mode, drain launch.Drain, log hclog.Logger) (*Link, error) {
	control, err := launch.Open(mode)
	if err != nil {
		return nil, err
	}
	l := newLink(drain, log)
	l.control = control
	return l, nil
}

func newLink(drain launch.Drain, log hclog.Logger) *Link {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return &Link{
		Drainer: launch.NewDrainer(drain),
		log:     log,
		ready:   make(chan struct{}),
		left:    make(chan struct{}),
		ended:   make(chan struct{}),
		warned:  make(map[string]bool),
	}
}

// Launch returns the command of a program that installs the filter and then becomes command.
func (l *Link) Launch(command []string) []string { return l.control.Command(command) }

// Files returns the socket by which the launch talks to us; the command does not inherit it.
func (l *Link) Files() []*os.File { return l.control.Files() }

// Env returns nothing: the worker knows nothing of us.
func (l *Link) Env(func(string) string) []string { return nil }

// Ready is closed when a process of the worker waits for connections: on every listener of
// the slot, if that has some.
func (l *Link) Ready() <-chan struct{} { return l.ready }

// Ping implements supervisor.Link: a program that knows nothing of us cannot answer. What waits at its listeners their owner sees.
func (l *Link) Ping() bool { return true }

// Left is closed when the worker cannot be given what it asks for. Err tells why: an
// *launch.Error if the filter could not be installed.
func (l *Link) Left() <-chan struct{} { return l.left }

// Err tells why the worker left. Ask only after Left is closed.
func (l *Link) Err() error { return l.leftErr }

// Close ends the link. Processes that go on and bind something then fail (ENOSYS).
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	close(l.ended)
	if l.Notifs != nil {
		l.Notifs.Close()
	}
	l.mu.Unlock()
	l.control.Close()
	l.running.Wait()
	l.End()
}

// Closed is closed by Close.
func (l *Link) Closed() <-chan struct{} { return l.ended }

// Go runs f in a goroutine that Close waits for.
func (l *Link) Go(f func()) { l.running.Go(f) }

// MarkReady closes Ready.
func (l *Link) MarkReady() { l.isReady.Do(func() { close(l.ready) }) }

// Hello waits until the child has installed the filter, and has await run from then on. Notifs is there when it
// returns. It fails with an *launch.Error if the child cannot.
func (l *Link) Hello(await func()) error {
	pid, file, err := l.control.Hello()
	if err != nil {
		return err
	}
	notifs, err := seccomp.NewNotifications(file)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		notifs.Close()
		return os.ErrClosed
	}
	l.Notifs = notifs
	l.pids = []int{pid}
	l.running.Go(await)
	return nil
}

// Roots returns processes of the worker: the first one, and those that took a listener, which
// may not be its descendants any more.
func (l *Link) Roots() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.pids)
}

// AddRoot notes a thread's process as one of Roots.
func (l *Link) AddRoot(tid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pids) < maxRoots && !slices.Contains(l.pids, tid) {
		l.pids = append(l.pids, tid)
	}
}

// Drain tells the worker to finish.
func (l *Link) Drain() {
	l.failRefused()
	l.Drainer.Drain()
}

// Refuse is Leave for a call of bind, which fails when the supervisor has heard of that and drains the
// worker: else its process could end first, and nobody would know why.
func (l *Link) Refuse(id uint64, err error) {
	l.mu.Lock()
	l.refused = append(l.refused, id)
	draining := l.draining
	l.mu.Unlock()
	l.Leave(err)
	if draining {
		l.failRefused()
	}
}

func (l *Link) failRefused() {
	l.mu.Lock()
	refused := l.refused
	l.refused, l.draining = nil, true
	l.mu.Unlock()
	for _, id := range refused {
		l.Notifs.Answer(id, unix.EADDRNOTAVAIL)
	}
}

// Leave closes Left: the worker cannot be given what it asks for. It has no effect after Close, or a second
// time.
func (l *Link) Leave(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leftErr == nil && !l.closed {
		l.leftErr = err
		close(l.left)
	}
}

// CannotSee notes that a process of the worker cannot be looked into.
func (l *Link) CannotSee(err error) {
	l.mu.Lock()
	l.hidden = err
	l.mu.Unlock()
	l.WarnOnce("a worker's processes cannot be looked into", "err", err, "remedy", "let it stay the master's user, or give the master CAP_SYS_PTRACE and CAP_DAC_OVERRIDE")
}

// NobodyAsks tells whether an error of Notifs.Next says that no process of the worker has the filter any more, or came with
// Close. After another one whoever asks would wait for ever.
func (l *Link) NobodyAsks(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed || errors.Is(err, unix.ENOTCONN)
}

// AnswerUnknown answers a call of bind that cannot be told to be for the balancer's address or not. A process that must not be
// looked into is let do what it wants. For want of descriptors or memory the call fails: if it was for the balancer's address the
// worker would listen there beside us.
func (l *Link) AnswerUnknown(id uint64, err error) {
	if errors.Is(err, fs.ErrPermission) {
		l.CannotSee(err)
		l.Notifs.Continue(id)
		return
	}
	l.CouldNot("a worker's bind has failed, since its process could not be looked into", err)
	l.Notifs.Answer(id, unix.ENOBUFS)
}

// CouldNot notes, and logs once, that a call was not answered as it should be for want of something that may be there again.
func (l *Link) CouldNot(message string, err error) {
	l.mu.Lock()
	l.hidden = err
	l.mu.Unlock()
	l.WarnOnce(message, "err", err)
}

// WarnOnce logs a message once for this worker, which may cause it again and again.
func (l *Link) WarnOnce(message string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.warned[message] {
		l.warned[message] = true
		l.log.Warn(message, args...)
	}
}

// ReplaceSocket puts a duplicate of source in the place of a caller's descriptor. It warns if epoll instances
// that knew the old one could not be told.
func (l *Link) ReplaceSocket(n *seccomp.Notification, caller seccomp.Caller, source int, closeOnExec bool) unix.Errno {
	errno, lost := l.Notifs.ReplaceSocket(n.ID, caller, source, closeOnExec)
	if lost != nil {
		l.WarnOnce("a worker has registered its socket with epoll before it was bound, and that is lost", "pid", caller.TID, "err", lost,
			"remedy", "--worker-link activation if it takes a socket from systemd; for Netty: java -Dio.netty.transport.noNative=true, or its NIO transport")
	}
	return errno
}

// OwnAddress is an address other than the balancer's that a worker has asked for. Whether it got it
// is not known.
type OwnAddress struct {
	Network string // "tcp" or "udp"
	netip.AddrPort
}

// maxOwn is how many own addresses of a worker are remembered.
const maxOwn = 32

// OwnAddresses returns those that the worker has asked for, in the order in which it did.
func (l *Link) OwnAddresses() []OwnAddress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.own)
}

// NoteOwnAddress remembers an address that a thread asks for.
func (l *Link) NoteOwnAddress(bound netip.AddrPort, caller seccomp.Caller) {
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
