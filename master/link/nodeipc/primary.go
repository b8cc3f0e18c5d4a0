package nodeipc

import (
	"encoding/json"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
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

// Config is what a Primary needs.
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
	// User is the one that workers run as; nil: the master's. Sockets that they ask for are opened with that user's rights.
	User   *syscall.Credential
	Logger hclog.Logger

	// Module is loaded by workers, and HandBack takes from them what they then hand back, between two requests, as
	// balancer.HandBack does. nil: they load nothing, or hand nothing back.
	Module   *Module
	HandBack func(l *Link, conns []fdpass.Handoff) (n int, err error)
	// Everybody tells whether that is done with the connections of every peer, since requests say themselves where they belong;
	// false: with those of trusted proxies.
	Everybody bool
	// IdleTimeout is for how long what is handed back may be idle. Workers promise their clients no more.
	IdleTimeout time.Duration

	// Open tells whether a worker has connections open. nil: nobody knows, and a worker that does not
	// exit by itself drains until it is late.
	Open func(pid int) (bool, error)
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
	names  []socketName               // of those on Unix paths
	stuck  atomic.Bool                // a worker's path leads where nothing answers
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
	names := p.names
	p.names = nil
	if len(names) > 0 {
		p.remove(names...) // as Node's primary does
	}
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
		p.log.Warn("workers share no more listeners of their own", "limit", maxShared, "refused", key, "remedy", "have each listen on fewer addresses beside handfast's, or say --worker-link any")
		return nil, unix.EMFILE
	}
	s, err := p.open(q)
	if err != nil {
		return nil, err
	}
	p.shared[key] = s.file
	if s.name.dir != nil {
		p.names = append(p.names, s.name)
	}
	return s.file, nil
}
