package bindswap

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/link/seccomp"
	"github.com/handfast/handfast/master/reexec"
)

// Config is what a worker's link needs.
type Config struct {
	// Listeners are the slot's, borrowed until Close; required. Each must be waited on for
	// the worker to be ready, except one of both families beside one of IPv4.
	Listeners []*os.File
	// IPv4 returns another listener of the slot, for IPv4 alone, and is called when a server
	// binds a socket of IPv4 and the listener that fits is one of IPv6 that takes IPv4 as
	// well. The file is borrowed until Close. Where such a listener is bound beside one of
	// both families, it gets all of IPv4. nil: the server gets the one that there is.
	IPv4 func(both *os.File) (*os.File, error)
	// Follow returns a listener of the slot on an address that a server binds and none of Listeners is
	// on, or nil if there is none: the balancer listens where servers do. onlyIPv6: the server's
	// socket takes no IPv4. The file is borrowed until Close. nil: there is none.
	Follow func(bound netip.AddrPort, onlyIPv6 bool) (*os.File, error)
	Drain  launch.Drain
	Logger hclog.Logger // nil: none
}

// Link is the master's side of one worker. It implements supervisor.Link. Two goroutines run
// for it: one answers the filter, and one looks whether the worker is ready. Close ends both.
type Link struct {
	*foreign.Link
	ipv4   func(both *os.File) (*os.File, error)
	follow func(bound netip.AddrPort, onlyIPv6 bool) (*os.File, error)
	log    hclog.Logger

	mu        sync.Mutex
	listeners []*listener
}

// Open makes a link for a worker that is not yet started.
func Open(cfg Config) (*Link, error) { return open(cfg, launch.BindSwap) }

func open(cfg Config, mode launch.Mode) (*Link, error) {
	l, err := newLink(cfg)
	if err != nil {
		return nil, err
	}
	if l.Link, err = foreign.Open(mode, cfg.Drain, cfg.Logger); err != nil {
		return nil, err
	}
	l.Go(l.run)
	return l, nil
}

func newLink(cfg Config) (*Link, error) {
	l := &Link{ipv4: cfg.IPv4, follow: cfg.Follow, log: cfg.Logger}
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
	return l, nil
}

// Drain tells the worker to finish. If it was never ready, the log tells how far it came.
func (l *Link) Drain() {
	l.Link.Drain()
	select {
	case <-l.Ready():
	case <-l.Left():
	case <-l.Closed():
	default:
		l.logProgress()
	}
}

// logProgress says which listeners a worker has taken that was never ready.
func (l *Link) logProgress() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ln := range l.listeners {
		if !ln.replaced || ln.taken {
			l.log.Info("worker was not ready", "listen", ln.String(), "bound", ln.taken)
		}
	}
}

// run answers the filter until no process has it any more, or Close.
func (l *Link) run() {
	if err := l.Hello(l.await); err != nil {
		l.Leave(err)
		return
	}
	l.answer()
}

func (l *Link) answer() {
	var n seccomp.Notification
	for {
		err := l.Notifs.Next(&n)
		switch {
		case err == nil:
			l.handle(&n)
			reexec.Lock.RUnlock()
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if !l.NobodyAsks(err) {
				l.Leave(err)
			}
			return
		}
	}
}

// await closes Ready.
func (l *Link) await() {
	if listening.Wait(l.Closed(), l.Roots, l.awaited, l.CannotSee) {
		l.MarkReady()
	}
}

// Accepts tells whether a server of the worker has the slot's listener on this address.
func (l *Link) Accepts(addr netip.AddrPort) bool {
	return l.anyListener(func(ln *listener) bool { return ln.taken && ln.AddrPort == addr })
}

// Served tells whether a server of the worker has one of the slot's listeners.
func (l *Link) Served() bool {
	return l.anyListener(func(ln *listener) bool { return ln.taken })
}

// isOurs tells whether a socket is one of the slot's.
func (l *Link) isOurs(inode uint64) bool {
	return l.anyListener(func(ln *listener) bool { return ln.inode == inode })
}

func (l *Link) anyListener(is func(*listener) bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.listeners, is)
}
