package nodeipc

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// ReadyWhen says when a worker is ready.
type ReadyWhen int

// Ready is said by the program, or seen.
const (
	ReadyAuto      ReadyWhen = iota // by whichever of the next two comes first
	ReadyMessage                    // it sends {cmd: 'ready'}, as with recluster
	ReadyListening                  // it listens on the balancer's port
	ReadyStarted                    // its first turn is over: what it does without waiting is done
)

// Config says whom a Primary serves.
type Config struct {
	Addresses []netip.AddrPort // that the balancer listens on
	ReadyWhen ReadyWhen
	Dialect   Dialect

	// Readmit takes ownership of connections that a worker did not take and that may be
	// placed again, GiveUp of those that it has refused for as long as Patience. Neither may
	// wait.
	Readmit, GiveUp func([]fdpass.Handoff)
	Patience        time.Duration // 0: one refusal is enough
	Sessions        Sessions      // is told which worker keeps which
	Logger          hclog.Logger
}

// Primary is what all Node workers of a master have in common.
type Primary struct {
	cfg   Config
	ports map[int][]netip.AddrPort // the balancer's listeners
	log   hclog.Logger

	stopping chan struct{} // closed when nobody comes any more, also not to a session
	lastID   atomic.Int64  // of a worker, as cluster.worker.id names it
	relay    relay

	mu     sync.Mutex
	data   map[string]json.RawMessage // per listener: the first worker's TLS ticket keys
	shared map[string]*os.File        // listeners that are not the balancer's
	paths  []string                   // of those on Unix paths
}

// NewPrimary serves workers of a balancer.
func NewPrimary(cfg Config) *Primary {
	p := &Primary{
		cfg:      cfg,
		ports:    make(map[int][]netip.AddrPort),
		log:      cfg.Logger,
		stopping: make(chan struct{}),
		data:     make(map[string]json.RawMessage),
		shared:   make(map[string]*os.File),
	}
	for _, addr := range cfg.Addresses {
		port := int(addr.Port())
		p.ports[port] = append(p.ports[port], addr)
	}
	return p
}

// Stop says that no connection comes any more: workers that drain need not wait for
// requests of their sessions. Call it once.
func (p *Primary) Stop() { close(p.stopping) }

func (p *Primary) isStopping() bool {
	select {
	case <-p.stopping:
		return true
	default:
		return false
	}
}

// Close closes the listeners that are not the balancer's. Call it when all links are
// closed.
func (p *Primary) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, file := range p.shared {
		file.Close()
	}
	clear(p.shared)
	for _, path := range p.paths {
		os.Remove(path) // as Node's primary does
	}
	p.paths = nil
}

// balancer returns the balancer's listeners on the port that a worker asks for.
func (p *Primary) balancer(q *query) []netip.AddrPort {
	if kind := q.kind(); kind != "4" && kind != "6" {
		return nil
	}
	return p.ports[q.Port]
}

const (
	// maxShared is how many listeners of their own all workers may have together.
	maxShared = 128
	// maxAddress is the longest address, or path, that a worker may ask for; the kernel takes
	// a path of 108.
	maxAddress = 128
	// maxData is the longest data that is kept for a listener, and maxKnown for how many.
	maxData  = 64 << 10
	maxKnown = 1024
)

// dataOf returns the data that all workers share for a listener: the first one's.
func (p *Primary) dataOf(key string, own json.RawMessage) json.RawMessage {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known, ok := p.data[key]; ok {
		return known
	}
	if len(own) > 0 && len(p.data) < maxKnown && string(own) != "null" {
		p.data[key] = own
	}
	return own
}

// share returns a listener that all workers share, or a socket for datagrams; the primary
// goes on owning it.
func (p *Primary) share(q *query) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := q.key()
	if file, ok := p.shared[key]; ok {
		return file, nil
	}
	if len(p.shared) >= maxShared {
		p.log.Warn("workers listen on too much", "limit", maxShared, "refused", key)
		return nil, unix.EMFILE
	}
	file, err := open(q)
	if err != nil {
		return nil, err
	}
	p.shared[key] = file
	if q.kind() == "-1" {
		p.paths = append(p.paths, *q.Address)
	}
	return file, nil
}

// ipv6Only is a flag of libuv (UV_TCP_IPV6ONLY).
const ipv6Only = 1

// open opens what a worker wants to listen on. The caller owns the file.
func open(q *query) (file *os.File, err error) {
	address := ""
	if q.Address != nil {
		address = *q.Address
	}
	type filer interface {
		File() (*os.File, error)
		Close() error
	}
	var opened any
	hostPort := net.JoinHostPort(address, itoa(q.Port))
	switch q.kind() {
	case "4", "6", "udp4", "udp6":
		// Node has resolved names. We do not: that could take long, and others wait.
		if _, err := netip.ParseAddr(address); err != nil && address != "" {
			return nil, unix.EINVAL
		}
	}
	switch q.kind() {
	case "4", "6":
		network := "tcp"
		if q.Address != nil && (address != "::" || q.Flags&ipv6Only != 0) {
			network += q.kind()
		}
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		opened, err = config.Listen(context.Background(), network, hostPort)
	case "udp4", "udp6":
		opened, err = net.ListenPacket(q.kind(), hostPort)
	case "-1":
		if address == "" {
			return nil, unix.EINVAL
		}
		var ln *net.UnixListener
		ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
		if err == nil {
			ln.SetUnlinkOnClose(false)
		}
		opened = ln
	default:
		return nil, unix.EAFNOSUPPORT
	}
	if err != nil {
		return nil, err
	}
	socket := opened.(filer)
	defer socket.Close() // the file is a duplicate
	if file, err = socket.File(); err != nil {
		return nil, err
	}
	// File has made it blocking, and Node's event loop needs it otherwise.
	raw, err := file.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), true) })
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
