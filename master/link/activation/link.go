package activation

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/listening"
)

// Config is what a worker's link needs.
type Config struct {
	// Listeners are the slot's, borrowed until Close; the worker has them in this order.
	Listeners []*os.File
	// NonBlocking switches O_NONBLOCK on, as NonBlocking=true does in a systemd unit. It
	// belongs to the socket, and so to all that share it: it is never switched off, since a
	// worker of the slot may have switched it on for itself.
	NonBlocking bool
	// Env returns by which other variables than LISTEN_FDS the program finds listeners at these addresses, with
	// descriptors from first up. nil: there are none.
	Env    func(addresses []string, first int) []string
	Drain  launch.Drain
	Logger hclog.Logger // nil: none
}

// name is what the sockets are called in LISTEN_FDNAMES.
const name = "handfast"

// firstListener is the number of the first (SD_LISTEN_FDS_START).
const firstListener = 3

// Link is the master's side of one worker. It implements supervisor.Link. One goroutine
// looks whether the worker is ready; Close ends it.
type Link struct {
	*launch.Drainer
	control *launch.Control
	sockets []listening.Listener
	env     []string
	log     hclog.Logger
	ready   chan struct{}
	left    chan struct{}
	leftErr error
	ended   chan struct{} // closed by Close
	done    sync.WaitGroup
}

// Open makes a link for a worker that is not yet started.
func Open(cfg Config) (*Link, error) {
	l := newLink(cfg)
	var addresses []string
	for _, file := range cfg.Listeners {
		socket, err := prepare(file, cfg.NonBlocking)
		if err != nil {
			return nil, fmt.Errorf("listener of a slot: %w", err)
		}
		l.sockets = append(l.sockets, socket)
		addresses = append(addresses, socket.Addr.String())
	}
	l.env = environ(len(addresses))
	if cfg.Env != nil {
		l.env = append(l.env, cfg.Env(addresses, firstListener)...)
	}
	control, err := launch.Open(launch.Activate, cfg.Listeners...)
	if err != nil {
		return nil, fmt.Errorf("passing listeners on: %w", err)
	}
	l.control = control
	l.done.Go(l.run)
	return l, nil
}

func newLink(cfg Config) *Link {
	l := &Link{
		Drainer: launch.NewDrainer(cfg.Drain),
		log:     cfg.Logger,
		ready:   make(chan struct{}),
		left:    make(chan struct{}),
		ended:   make(chan struct{}),
	}
	if l.log == nil {
		l.log = hclog.NewNullLogger()
	}
	return l
}

// prepare returns a listener's socket. Its address is as php-fpm writes it.
func prepare(file *os.File, nonBlocking bool) (socket listening.Listener, err error) {
	var at unix.Sockaddr
	err = sock.Control(file, func(fd int) (err error) {
		if nonBlocking {
			unix.SetNonblock(fd, true)
		}
		if socket.Inode, err = sock.InodeFD(fd); err != nil {
			return err
		}
		at, err = unix.Getsockname(fd)
		return os.NewSyscallError("getsockname", err)
	})
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		socket.Addr = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	case *unix.SockaddrInet6:
		socket.Addr = netip.AddrPortFrom(netip.AddrFrom16(at.Addr), uint16(at.Port))
	}
	return socket, err
}

// environ announces n listeners.
func environ(n int) []string {
	return []string{
		"LISTEN_FDS=" + strconv.Itoa(n),
		"LISTEN_FDNAMES=" + strings.Join(slices.Repeat([]string{name}, n), ":"),
	}
}

// Launch returns the command of a program that takes the listeners and then becomes command.
func (l *Link) Launch(command []string) []string { return l.control.Command(command) }

// Files returns what the launch talks to us by.
func (l *Link) Files() []*os.File { return l.control.Files() }

// Env returns what the worker looks for. LISTEN_PID is the launch's to say.
func (l *Link) Env(func(string) string) []string { return l.env }

// Ready is closed when processes of the worker wait for connections on every listener, or have accepted some.
func (l *Link) Ready() <-chan struct{} { return l.ready }

// Ping implements supervisor.Link: a program that knows nothing of us cannot answer. What waits at its listeners their owner sees.
func (l *Link) Ping() bool { return true }

// Left is closed when the listeners could not be passed. Err tells why.
func (l *Link) Left() <-chan struct{} { return l.left }

// Err tells why the worker left. Ask only after Left is closed.
func (l *Link) Err() error { return l.leftErr }

// Close ends the link.
func (l *Link) Close() {
	close(l.ended)
	l.control.Close()
	l.done.Wait()
	l.End()
}

// run closes ready, or left.
func (l *Link) run() {
	pid, _, err := l.control.Hello()
	if err != nil {
		select {
		case <-l.ended:
		default:
			l.leftErr = err
			close(l.left)
		}
		return
	}
	hidden := func(err error) { l.log.Warn("cannot tell whether the worker is ready", "err", err) }
	if listening.Wait(l.ended, func() []int { return []int{pid} }, func() []listening.Listener { return l.sockets }, hidden) {
		close(l.ready)
	}
}
