package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/reexec"
)

// WhenDown says what happens to the clients of a slot that stays empty.
type WhenDown int

// Whether to stay with the slot, or to go to the next one after the last retry.
const (
	Wait WhenDown = iota // they are refused
	Next                 // the next slot in the client's own order takes them
)

// Refuse says how a connection is refused.
type Refuse int

// The ways to refuse.
const (
	RefuseHTTP  Refuse = iota // with a complete HTTP answer, 502 or 503
	RefuseClose               // by closing it
)

// Config says how connections are placed and how long they may wait.
// Start from DefaultConfig.
type Config struct {
	Clients    clientip.Config // how the client of a connection is found
	Strategy   Strategy        // where clients belong
	RetryDelay time.Duration   // between two tries to deliver a parked connection
	MaxRetries int             // tries after the first; 0: refuse at once
	MaxParked  int             // connections that may be parked; beyond them 503
	MaxClient  int             // of them of one client, once that is known; 0: no limit of its own
	// IdleTimeout is for how long a connection that was handed back may have nothing of another request. Half of MaxParked may be
	// idle, beside those that are parked, and half of the open files.
	IdleTimeout time.Duration
	WhenDown    WhenDown
	Refuse      Refuse
	Logger      hclog.Logger // nil: none

	// OnOutcome, if there is one, is told what became of each connection that was parked, was
	// refused or is gone, and with EveryOutcome of all others, too. It must not wait, and may be
	// called by several goroutines at a time.
	OnOutcome    func(Outcome)
	EveryOutcome bool
}

// DefaultConfig waits for 50 tries, 100 ms apart. Idle connections stay for longer than proxies keep them in their pools: nginx (keepalive_timeout of an
// upstream) and AWS' load balancers do for 60 s, Traefik and others in Go (net/http.DefaultTransport) for 90 s, Caddy for 2 min. So it is mostly
// the proxy that ends them, and knows of it.
func DefaultConfig() Config {
	return Config{
		Clients:     clientip.DefaultConfig(),
		Strategy:    ByKey{},
		RetryDelay:  100 * time.Millisecond,
		MaxRetries:  50,
		MaxParked:   10_000,
		IdleTimeout: 150 * time.Second,
	}
}

// Patience is how long a connection may wait for its slot.
func (c *Config) Patience() time.Duration {
	return time.Duration(c.MaxRetries) * c.RetryDelay
}

// Validate says what is missing or out of range.
func (c *Config) Validate() error {
	switch {
	case c.Strategy == nil:
		return errors.New("balancer: no strategy")
	case c.RetryDelay <= 0:
		return fmt.Errorf("balancer: retry delay %v, want more than 0", c.RetryDelay)
	case c.MaxRetries < 0:
		return fmt.Errorf("balancer: %d retries, want 0 or more", c.MaxRetries)
	case time.Duration(c.MaxRetries) > MaxPatience/c.RetryDelay:
		return fmt.Errorf("balancer: %d retries %v apart are more than %v", c.MaxRetries, c.RetryDelay, MaxPatience)
	case c.MaxParked < 0:
		return fmt.Errorf("balancer: %d parked connections, want 0 or more", c.MaxParked)
	case c.MaxClient < 0:
		return fmt.Errorf("balancer: %d parked connections of a client, want 0 or more", c.MaxClient)
	case c.IdleTimeout <= 0 || c.IdleTimeout > MaxPatience:
		return fmt.Errorf("balancer: idle timeout %v, want more than 0 and at most %v", c.IdleTimeout, MaxPatience)
	}
	return c.Clients.Validate()
}

// MaxPatience is the longest time that a connection may be parked.
const MaxPatience = 24 * time.Hour

// Balancer hands connections to the workers of a table. A goroutine runs for each
// parked connection, and one for all idle ones; Shutdown waits for them.
type Balancer struct {
	cfg     Config
	table   *Table
	clients *clientip.Finder
	ledger  *ledger
	advice  *advice
	refuser *refuser

	idlers      *idlers         // connections that workers have handed back between two requests
	waitlist    *waitlist       // connections that are parked for their head or their slot, or being refused
	draining    context.Context // ended when nothing may be parked any longer
	stopWaiting context.CancelFunc

	turn atomic.Uint32 // of spread

	serving   sync.Mutex
	acceptors map[*acceptor]struct{}           // of Serve
	addresses atomic.Pointer[[]netip.AddrPort] // that connections may have come to; never changed, only replaced
	names     atomic.Pointer[[]string]         // likewise, as Unix sockets are bound to them
	returns   sync.Pool                        // of *returns
}

// New checks the configuration; Serve accepts connections.
func New(cfg Config, table *Table) (*Balancer, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Clients.Sessions = table.Sessions.Any
	clients, err := clientip.New(cfg.Clients)
	if err != nil {
		return nil, err
	}
	rules := &cfg.Clients.Rules
	if rules.Header != "" || cfg.Clients.ProxyProtocol {
		cfg.Logger.Info("clients are named by proxies", "header", rules.Header, "key", rules.Keys.String(),
			"proxy_protocol", cfg.Clients.ProxyProtocol, "trusted", rules.Trusted.String())
	}
	if rules.LooksAtAll() {
		cfg.Logger.Info("clients bring what they are recognised by", "key", rules.Keys.String(), "session", rules.Sessions.String())
	}
	b := &Balancer{
		cfg:     cfg,
		table:   table,
		clients: clients,
		ledger: &ledger{
			table:  table,
			log:    logging.Limit(cfg.Logger, logging.Few),
			report: cfg.OnOutcome,
			every:  cfg.EveryOutcome,
		},
		waitlist:  newWaitlist(cfg.MaxParked, cfg.MaxClient),
		acceptors: make(map[*acceptor]struct{}),
	}
	b.advice = newAdvice(cfg.Logger, &b.cfg.Clients)
	b.refuser = &refuser{
		ledger:   b.ledger,
		mute:     cfg.Refuse == RefuseClose,
		overflow: newWaitlist(min(maxOverflow, fdlimit.Limit()/8), 0),
	}
	b.idlers = newIdlers(cfg.IdleTimeout, b.half, b.leaveIdle)
	b.returns.New = func() any { return b.newReturns() }
	b.draining, b.stopWaiting = context.WithCancel(context.Background())
	return b, nil
}

// Serve accepts connections from ln, a *net.TCPListener or a *unixsocket.Listener that it takes ownership
// of, until ctx ends: then it delivers what the kernel had accepted and returns
// nil. It may be called for several listeners at the same time.
//
// It sets the options of ln that Listen sets, TCP_NODELAY and keep-alive, so that
// connections inherit them. A listener of net.Listen may accept Multipath TCP, one
// of Listen does not. The peers of a Unix socket are trusted proxies (fdpass.FlagUnix).
func (b *Balancer) Serve(ctx context.Context, ln net.Listener) error {
	at := ln.Addr().String()
	if tcp := Address(ln); tcp.IsValid() {
		at = tcp.String()
	}
	a, err := newAcceptor(b, ln)
	if err != nil {
		return err
	}
	b.serves(a, true)
	defer b.serves(a, false)
	b.cfg.Logger.Info("listening", "address", at)
	return a.run(ctx)
}

func (b *Balancer) serves(a *acceptor, now bool) {
	b.serving.Lock()
	defer b.serving.Unlock()
	if now {
		b.acceptors[a] = struct{}{}
	} else {
		delete(b.acceptors, a)
	}
}

// Readmit takes ownership of connections that were accepted before, such as those
// that a worker did not take, and finds a worker for each. It does not wait.
func (b *Balancer) Readmit(conns []fdpass.Handoff) {
	for _, c := range b.takeBack(conns) {
		b.park(c)
	}
}

// GiveUp takes ownership of connections that the worker of their slot has refused for as long as
// a connection may wait for it. They are not delivered to that slot again. It does not wait.
func (b *Balancer) GiveUp(conns []fdpass.Handoff) {
	for _, c := range b.takeBack(conns) {
		b.parkFor(c, func(p *parked) { b.giveUp(p, errUnwilling) })
	}
}

// takeBack finds out again whose connections these are, and returns those that identify does.
func (b *Balancer) takeBack(conns []fdpass.Handoff) (known []connection) {
	reexec.Lock.MustHold()
	b.ledger.takenBack.Add(uint64(len(conns)))
	all := make([]connection, len(conns))
	for i, h := range conns {
		peer, _ := sock.Peer(h.FD)
		all[i].Handoff = b.believe(h, peer, !peer.IsValid() && b.isOurSocket(h.FD))
	}
	return b.identify(all, b.clients.Buffer())
}

// Shutdown ends idle connections, and has none any more. It waits until no connection is parked. When ctx ends those that are left,
// and all that come later, are refused at once; it still waits for that. Call it
// when Serve has returned.
func (b *Balancer) Shutdown(ctx context.Context) {
	b.idlers.close()
	if b.waitlist.waitUntilEmpty(ctx) != nil {
		b.stopWaiting()
		b.waitlist.waitUntilEmpty(context.Background()) // bounded by lingerTimeout
	}
	b.refuser.overflow.waitUntilEmpty(context.Background()) // likewise
}

// Config returns what the balancer was made with.
func (b *Balancer) Config() Config { return b.cfg }

// Table returns its slots.
func (b *Balancer) Table() *Table { return b.table }

// ParkedBySlot returns how many connections wait for each slot's worker; NoSlot is that of those whose
// client is not known yet.
func (b *Balancer) ParkedBySlot() map[int]int { return b.waitlist.countBySlot() }

// Idle returns how many connections are between two requests.
func (b *Balancer) Idle() int { return b.idlers.len() }

// Patience is how long a connection may be parked.
func (b *Balancer) Patience() time.Duration {
	return b.clients.Timeout() + b.cfg.Patience()
}

// Stats returns the counts. They are not of one instant.
func (b *Balancer) Stats() Stats {
	s := b.ledger.stats()
	s.Parked = b.waitlist.len() + b.refuser.overflow.len()
	return s
}
