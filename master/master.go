package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/link/acceptinject"
	"github.com/handfast/handfast/master/link/activation"
	"github.com/handfast/handfast/master/link/bindswap"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/openconns"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// filesPerOutput is how many it holds for what a worker prints, if it reads that.
	filesPerOutput = 2

	// filesPerProcess is how many descriptors the master holds for each worker
	// process, also one that drains: both ends of its mailbox, the ears of ours, and its pidfd.
	filesPerProcess = 4

	// baseFiles is what it holds besides: standard streams, poller, listeners.
	baseFiles = 16
)

// supervisorRate leaves room for all that operators do with a slot, and bounds what its workers cause.
var supervisorRate = logging.Rate{Burst: 100, Every: 200 * time.Millisecond, By: "slot"}

// Config is what a Master needs. Supervisor's NewLink and Slots, and the loggers of
// both parts, are the Master's to set.
//
// With Groups in place of Listeners the kernel gives clients to slots (package reuseport); it
// knows nothing but their addresses.
type Config struct {
	Listeners []net.Listener     // of which the Master takes ownership, also on error
	Groups    []*reuseport.Group // likewise

	// Follow has the master listen where workers of LinkAny do, and the kernel route: there may be no
	// Groups yet.
	Follow bool

	Balancer   balancer.Config
	Supervisor supervisor.Config
	Link       LinkKind          // how workers get their connections
	ReadyWhen  nodeipc.ReadyWhen // when a Node worker is ready

	// MaxConnections is how many connections a worker may have open before further ones are refused;
	// 0: any number. It needs Listeners, and workers of LinkNative that report their
	// connections; on others it has no effect, and that is logged.
	MaxConnections int

	// DrainSignal tells a worker of LinkActivation, LinkAny or LinkInject to finish, or launch.NoSignal: it
	// ends when its last connection has. 0: what is known of its program (programs.DrainSignal).
	DrainSignal syscall.Signal
	Dialect     nodeipc.Dialect // what Node workers wait for that do not listen
	Name        string          // for people, in Status
	Version     string          // likewise
	Logger      hclog.Logger    // nil: none

	// AccessLog has a line at level Info for each connection that the master has accepted: who it is
	// from, what became of it, and how long it waited. It must not wait. nil: none.
	AccessLog hclog.Logger

	// OnEvent is told of what happens to workers, in order, if it is not nil. What it does holds up further events, and
	// nothing else.
	OnEvent func(supervisor.Event)

	resume  *saved         // what the program before has left (Adopt); nil: nothing
	retired []net.Listener // of it, that are not wanted any more (Retire)
}

// kernelRoutes tells whether the kernel gives clients to slots.
func (c *Config) kernelRoutes() bool { return len(c.Groups) > 0 || c.Follow }

// groups is how many there may be, as a rule.
func (c *Config) groups() int {
	if c.Follow {
		return max(len(c.Groups), 2)
	}
	return len(c.Groups)
}

// addresses returns those that the balancer listens on.
func (c *Config) addresses() (all []netip.AddrPort) {
	for _, ln := range c.Listeners {
		if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
			all = append(all, tcp.AddrPort())
		}
	}
	for _, g := range c.Groups {
		all = append(all, g.Addr().AddrPort())
	}
	return all
}

// LinkKind says how workers get their connections.
type LinkKind int

// The kinds of links. Workers of LinkActivation and LinkAny get their slot's listeners and nothing
// else, so the kernel must route; for LinkInject the master must.
const (
	LinkNative     LinkKind = iota // from a mailbox, as package fdpass describes it
	LinkNode                       // over Node's own channel (package nodeipc)
	LinkActivation                 // they inherit listeners, as from systemd (package activation)
	LinkAny                        // they bind the port themselves (package bindswap)
	LinkInject                     // so they do, and accept is answered (package acceptinject)
)

func (k LinkKind) String() string {
	return [...]string{"native", "node", "activation", "any", "any, by accept injection"}[k]
}

// handsOff tells whether single connections can be handed to workers.
func (k LinkKind) handsOff() bool { return k == LinkNative || k == LinkNode || k == LinkInject }

// sharing is what to do about workers that listen by themselves beside their slot's listener.
func (k LinkKind) sharing() string {
	if k == LinkNode {
		return "have it listen without reusePort and exclusive, or say --worker-link any"
	}
	return "have it listen without SO_REUSEPORT, or say --worker-link any"
}

// Master is a Balancer whose slots a Supervisor fills with worker processes. One
// goroutine runs for each listener and one for the supervisor; they end with Run.
type Master struct {
	balancer   *balancer.Balancer
	kernel     *kernelroute.Route // nil when the master routes
	supervisor *supervisor.Supervisor
	primary    *nodeipc.Primary // nil without Node workers
	patience   time.Duration    // with what is parked when we stop

	name, version string
	started       time.Time
	link          LinkKind
	wishes        mailbox.Wishes
	spared        int // the last generation of which a worker could not do what is wished; of the supervisor

	command     []string
	drainSignal syscall.Signal
	drainsTold  bool // drainSignal is one on which this program is known to finish
	lossTold    bool // that it does not; of the supervisor
	addresses   []netip.AddrPort
	elsewhere   *elsewhere
	several     *several
	advice      *advice
	connections *openconns.Finder // of workers

	listeners []net.Listener
	retired   []net.Listener // to be accepted from for the last time
	access    hclog.Logger   // nil: none
	log       hclog.Logger   // of what an operator causes
	few       hclog.Logger   // of what workers can cause again and again
	stop      chan struct{}
	stopOnce  sync.Once

	replacing atomic.Bool // the program
	upgraded  atomic.Pointer[Upgrade]
	parked    []balancer.SavedParked // by the program before
}

// Files is how many descriptors the master needs, without those of connections that are
// parked.
func (c *Config) Files() int {
	// A reload doubles the number of processes if the old ones take their time.
	return baseFiles + fdlimit.Spare + c.groups() + 2*c.filesPerWorker()*c.Supervisor.Workers
}

// filesPerWorker is how many of them it needs for each worker process.
func (c *Config) filesPerWorker() int {
	n := filesPerProcess + c.groups()
	if c.Supervisor.NewOutput != nil {
		n += filesPerOutput
	}
	return n
}

// New checks the configuration; Run starts everything.
func New(cfg Config) (*Master, error) {
	m, err := newMaster(cfg)
	if err != nil {
		for _, ln := range cfg.Listeners {
			ln.Close()
		}
		for _, g := range cfg.Groups {
			g.Close()
		}
	}
	return m, err
}

func newMaster(cfg Config) (*Master, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	need := cfg.Files()
	if limit := fdlimit.Limit(); limit < need {
		return nil, fmt.Errorf("master: the limit of open files is %d, %d workers need %d; raise it with ulimit -n or LimitNOFILE=",
			limit, cfg.Supervisor.Workers, need)
	}
	cfg.Supervisor.MaxProcesses = (fdlimit.Limit() - baseFiles - fdlimit.Spare) / cfg.filesPerWorker()
	cfg.Supervisor.MaxWorkers = min(hash.MaxSlots, cfg.Supervisor.MaxProcesses/2)
	if cfg.kernelRoutes() {
		cfg.Supervisor.MaxWorkers = min(reuseport.MaxSlots, cfg.Supervisor.MaxWorkers)
	}
	table := balancer.NewTable(1)
	m := &Master{
		name:      cfg.Name,
		version:   cfg.Version,
		started:   time.Now(),
		link:      cfg.Link,
		wishes:    mailbox.Wishes{MaxConnections: cfg.MaxConnections, Pings: cfg.Supervisor.Watchdog > 0},
		listeners: cfg.Listeners,
		retired:   cfg.retired,
		access:    cfg.AccessLog,
		log:       cfg.Logger,
		few:       logging.Limit(cfg.Logger, logging.Few),
		stop:      make(chan struct{}),
	}
	if m.access != nil {
		cfg.Balancer.LogOutcomes(m.logOutcome)
	}
	m.upgraded.Store(new(Upgrade))
	m.elsewhere = newElsewhere(m.listensOn, m.warnElsewhere)
	m.several = newSeveral(m.sharing, m.warnSeveral)
	m.advice = newAdvice(m.adviseSlow, m.adviseFailed)
	cfg.Balancer.Logger = cfg.Logger.Named("balancer")
	routing, err := balancer.New(cfg.Balancer, table)
	if err != nil {
		return nil, err
	}
	cfg.Supervisor.Logger = logging.Limit(cfg.Logger.Named("supervisor"), supervisorRate)
	m.addresses = cfg.addresses()
	cfg.Supervisor.Env = append(environ(&cfg.Balancer.Clients, m.addresses), cfg.Supervisor.Env...)
	m.balancer = routing
	m.patience = min(routing.Patience()+time.Second, cfg.Supervisor.StopTimeout)
	cfg.Supervisor.Slots = slots{table}
	if cfg.Follow && cfg.Link != LinkAny {
		return nil, fmt.Errorf("master: workers of link %v do not say where they listen: Groups or Listeners are required", cfg.Link)
	}
	if cfg.kernelRoutes() {
		if m.kernel, err = kernelroute.New(kernelroute.Config{
			Groups:   cfg.Groups,
			Balancer: routing,
			HandsOff: cfg.Link.handsOff(),
			Blocking: cfg.Link == LinkActivation || cfg.Link == LinkAny,
			Sharing:  cfg.Link.sharing(),
			Follows:  cfg.Follow,
			User:     cfg.Supervisor.Rights.User,
		}); err != nil {
			return nil, err
		}
		cfg.Supervisor.Slots = m.kernel
	}
	if m.kernel != nil {
		cfg.Supervisor.OnEventInLoop = m.kernel.Hear
	}
	cfg.Supervisor.OnEvent = func(e supervisor.Event) {
		m.spare(e)
		m.elsewhere.hear(e)
		m.several.hear(e)
		m.advice.hear(e)
		m.noteLoss(e)
		if cfg.OnEvent != nil {
			cfg.OnEvent(e)
		}
	}
	m.command = cfg.Supervisor.Command
	m.connections = openconns.New(func() []uint16 { return ports(m.listensAt()) })
	m.settleDraining(cfg.DrainSignal)
	cfg.Supervisor.NewLink = [...]func(supervisor.Seat) (supervisor.Link, error){m.newMailbox, m.newNodeLink, m.newActivation, m.newBindSwap, m.newAcceptInject}[cfg.Link]
	if !cfg.Link.handsOff() && m.kernel == nil {
		return nil, fmt.Errorf("master: workers of link %v take listeners: Groups are required", cfg.Link)
	}
	if cfg.Link == LinkInject && m.kernel != nil {
		return nil, fmt.Errorf("master: workers of link %v take connections: Listeners are required", cfg.Link)
	}
	if m.wishes != (mailbox.Wishes{}) && cfg.Link != LinkNative {
		return nil, fmt.Errorf("master: workers of link %v neither report their connections nor answer a watchdog: MaxConnections and Watchdog need LinkNative", cfg.Link)
	}
	if cfg.MaxConnections < 0 || cfg.MaxConnections > 0 && m.kernel != nil {
		return nil, fmt.Errorf("master: at most %d connections of a worker: want 0 or more, and Listeners, since the master has to hand them off", cfg.MaxConnections)
	}
	if cfg.Link == LinkNode {
		node := nodeipc.Config{
			Addresses: m.addresses,
			ReadyWhen: cfg.ReadyWhen,
			Dialect:   cfg.Dialect,
			Readmit:   routing.Readmit,
			GiveUp:    routing.GiveUp,
			Patience:  cfg.Balancer.Patience(),
			Sessions:  sessions{table},
			User:      cfg.Supervisor.Rights.User,
			Open:      m.connections.Open,
			Logger:    m.few.Named("node"),
		}
		m.primary = nodeipc.NewPrimary(node)
	}
	cfg.Logger.Info("workers get connections", "link", cfg.Link.String())
	if b := cfg.Supervisor.Resume; b != nil {
		cfg.Supervisor.RestoreLink = m.restoreLink(b)
		if err := m.resume(cfg.resume, b); err != nil {
			return nil, err
		}
		if m.kernel != nil {
			if err := m.kernel.Restore(cfg.resume.Steered); err != nil {
				return nil, err
			}
		}
		if m.primary != nil {
			if err := m.primary.Restore(b); err != nil {
				return nil, err
			}
		}
	}
	m.supervisor, err = supervisor.New(cfg.Supervisor)
	if err != nil {
		return nil, err
	}
	if m.kernel != nil {
		m.kernel.Finishing = m.supervisor.Finishing
	}
	return m, nil
}

func (m *Master) newMailbox(seat supervisor.Seat) (supervisor.Link, error) {
	return m.kernel.LetTo(seat, func(l *kernelroute.Lease) (supervisor.Link, error) {
		return mailbox.Open(m.kernel.Offer(l), m.wishes, m.balancer.Readmit)
	})
}

// spare says, once in each generation, which limits have no effect on a worker that is ready.
func (m *Master) spare(e supervisor.Event) {
	link, ok := e.Link.(*mailbox.Mailbox)
	if !ok || e.Kind != supervisor.WorkerReady || e.Generation == m.spared {
		return
	}
	var without []string
	if m.wishes.MaxConnections > 0 && link.MaxConnections() == 0 {
		without = append(without, "--max-connections-per-slot: it has not reported its connections before it was ready")
	}
	if m.wishes.Pings && !link.Answers() {
		without = append(without, "--watchdog: it does not answer pings")
	}
	if len(without) > 0 {
		m.spared = e.Generation
		m.few.Warn("worker cannot be held to everything", "slot", e.Slot, "pid", e.PID, "generation", e.Generation, "without", strings.Join(without, "; "))
	}
}

func (m *Master) newActivation(seat supervisor.Seat) (supervisor.Link, error) {
	return m.kernel.LetTo(seat, func(l *kernelroute.Lease) (supervisor.Link, error) { return activation.Open(m.activation(l)) })
}

func (m *Master) activation(l *kernelroute.Lease) activation.Config {
	return activation.Config{
		Listeners: m.kernel.Files(l),
		Command:   programs.See(m.command).Args,
		Drain:     m.drain(func() bool { return m.kernel.Idle(l) }),
		Logger:    m.few.Named("activation"),
	}
}

func (m *Master) newBindSwap(seat supervisor.Seat) (supervisor.Link, error) {
	return m.kernel.LetTo(seat, func(l *kernelroute.Lease) (supervisor.Link, error) { return bindswap.Open(m.bindswap(l)) })
}

func (m *Master) bindswap(l *kernelroute.Lease) bindswap.Config {
	cfg := bindswap.Config{
		Listeners: m.kernel.Files(l),
		IPv4:      func(both *os.File) (*os.File, error) { return m.kernel.OnlyIPv4(l, both) },
		Drain:     m.drain(func() bool { return m.kernel.Idle(l) }),
		Logger:    m.few.Named("any"),
	}
	if m.kernel.Follows() {
		cfg.Follow = func(bound netip.AddrPort, onlyIPv6 bool) (*os.File, error) {
			return m.kernel.Follow(l, bound, onlyIPv6)
		}
	}
	return cfg
}

func (m *Master) newAcceptInject(supervisor.Seat) (supervisor.Link, error) {
	return acceptinject.Open(acceptinject.Config{
		Addresses: m.addresses,
		Readmit:   m.balancer.Readmit,
		Drain:     m.drain(nil),
		Logger:    m.few.Named("any"),
	})
}

func (m *Master) newNodeLink(seat supervisor.Seat) (supervisor.Link, error) {
	return m.kernel.LetTo(seat, func(l *kernelroute.Lease) (supervisor.Link, error) { return m.primary.Open(seat.Slot, m.own(l)) })
}

// own returns by which listener a Node worker gets an address's connections, nil when the master
// routes.
func (m *Master) own(l *kernelroute.Lease) func(netip.AddrPort) *os.File {
	if m.kernel == nil {
		return nil
	}
	return func(addr netip.AddrPort) *os.File { return m.kernel.Listener(l, addr) }
}

// listensAt returns the addresses that clients come to now.
func (m *Master) listensAt() []netip.AddrPort {
	if m.kernel != nil {
		return m.kernel.Addresses()
	}
	return m.addresses
}

// environ tells workers how we recognise clients, and where the first of our listeners is.
func environ(clients *clientip.Config, addresses []netip.AddrPort) []string {
	env := clients.Rules.Environ()
	if len(addresses) > 0 {
		env = append(env, "HANDFAST_ADDRESS="+addresses[0].String())
	}
	return append(env,
		"HANDFAST_IPV4_PREFIX="+strconv.Itoa(clients.Hash.IPv4Prefix),
		"HANDFAST_IPV6_PREFIX="+strconv.Itoa(clients.Hash.IPv6Prefix))
}

// slots shows the supervisor the table as its own interface.
type slots struct{ *balancer.Table }

func (s slots) Fill(slot int, link supervisor.Link) { s.Table.Fill(slot, link.(balancer.Worker)) }

// sessions shows Node workers the table's sessions.
type sessions struct{ *balancer.Table }

func (s sessions) Claim(id clientip.Session, l *nodeipc.Link) bool { return s.Table.Claim(id, l) }
func (s sessions) Release(id clientip.Session, l *nodeipc.Link)    { s.Table.Release(id, l) }

// Run serves until Stop, and returns when every worker has ended. When ctx ends,
// before or during that, it kills them and returns at once.
func (m *Master) Run(ctx context.Context) error {
	if u := m.upgraded.Load(); u.Count > 0 {
		m.log.Info("upgraded", "from", u.From, "to", m.version, "parked", len(m.parked))
	}
	accepting, stopAccepting := context.WithCancel(ctx)
	defer stopAccepting()
	supervising := make(chan error, 1)
	if len(m.parked) > 0 {
		m.balancer.ReadmitParked(m.parked)
	}
	go func() { supervising <- m.supervisor.Run(ctx) }()
	serving := make(chan error, len(m.listeners)+1)
	left := len(m.listeners)
	for _, ln := range m.listeners {
		go func() { serving <- m.balancer.Serve(accepting, ln) }()
	}
	if len(m.retired) > 0 {
		over, end := context.WithCancel(accepting)
		end()
		for _, ln := range m.retired {
			go func() {
				if err := m.balancer.Serve(over, ln); err != nil {
					m.log.Error("what waited at an address that is no more was not accepted", "address", ln.Addr().String(), "err", err)
				}
			}()
		}
	}
	if m.kernel != nil {
		left++
		go func() { serving <- m.kernel.Serve(accepting, ctx, m.patience) }()
	}

	var failed error
	select {
	case <-m.stop:
		m.log.Info("stopping")
	case <-ctx.Done():
	case failed = <-serving:
		left--
		m.log.Error("cannot accept any more, stopping", "err", failed)
	}

	// Accepted is promised: first what the kernel has accepted, then what is
	// parked, while there still are workers to take it; then the workers.
	stopAccepting()
	for ; left > 0; left-- {
		failed = errors.Join(failed, <-serving)
	}
	waiting, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	m.balancer.Shutdown(waiting)
	if m.primary != nil {
		m.primary.Stop()
	}
	m.supervisor.Stop()
	err := <-supervising
	m.elsewhere.close()
	m.several.close()
	m.advice.close()
	cancel()
	if m.kernel != nil {
		m.kernel.Close(waiting)
	}
	m.balancer.Shutdown(waiting) // what the last workers left in their mailboxes
	if m.primary != nil {
		m.primary.Close()
	}
	m.logSummary()
	return errors.Join(failed, err)
}

// Stop ends Run: nothing more is accepted, what is parked is delivered or refused,
// and the workers finish what they have. It does not wait.
func (m *Master) Stop() { m.stopOnce.Do(func() { close(m.stop) }) }

// Stopping is closed when Stop is called.
func (m *Master) Stopping() <-chan struct{} { return m.stop }

// Ping returns when the supervisor has been seen alive, or ctx ends.
func (m *Master) Ping(ctx context.Context) error { return m.supervisor.Ping(ctx) }

func (m *Master) isStopping() bool {
	select {
	case <-m.stop:
		return true
	default:
		return false
	}
}

// Reload replaces all workers, as Supervisor.Reload does.
func (m *Master) Reload(ctx context.Context) error { return m.supervisor.Reload(ctx) }

// StartReload is Reload without waiting, as Supervisor.StartReload.
func (m *Master) StartReload() (generation int, result <-chan error, err error) {
	return m.supervisor.StartReload()
}

// StartReplace replaces the worker of one slot without waiting, as Supervisor.StartReplace does.
func (m *Master) StartReplace(slot int) (result <-chan error, err error) {
	return m.supervisor.StartReplace(slot)
}

// Scale changes the number of slots, as Supervisor.Scale does.
func (m *Master) Scale(n int) error { return m.supervisor.Scale(n) }

// ScaleBy adds n slots, or removes -n.
func (m *Master) ScaleBy(n int) error { return m.supervisor.ScaleBy(n) }

// Stats returns the balancer's counts. Connections that workers accept for themselves are
// nowhere counted.
func (m *Master) Stats() balancer.Stats {
	stats := m.balancer.Stats()
	if m.kernel != nil {
		stats.Add(m.kernel.Refuser().Stats())
	}
	return stats
}

// logSummary says what is known of all connections. Where workers accept for themselves that is what the master
// refused, and what it accepted while a slot was empty.
func (m *Master) logSummary() {
	s := m.Stats()
	fields := []any{"accepted", s.Accepted, "handed_off", s.HandedOff, "taken_back", s.TakenBack, "refused", s.Refused, "gone", s.Gone}
	switch {
	case m.kernel == nil:
	case s.Accepted == 0:
		fields = []any{"refused", s.Refused}
	default:
		fields[0] = "accepted_by_master"
	}
	m.log.Info("stopped", fields...)
}
