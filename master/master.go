package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/files"
	"github.com/handfast/handfast/master/mailbox"
	"github.com/handfast/handfast/master/nodeipc"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// filesPerProcess is how many descriptors the master holds for each worker
	// process, also one that drains: both ends of its mailbox and its pidfd.
	filesPerProcess = 3

	// baseFiles is what it holds besides: standard streams, poller, listeners.
	baseFiles = 16
)

// Config is what a Master needs. Supervisor's NewLink and Slots, and the loggers of
// both parts, are the Master's to set.
type Config struct {
	Listeners  []net.Listener // of which the Master takes ownership, also on error
	Balancer   BalancerConfig
	Supervisor supervisor.Config
	Link       LinkKind          // how workers get their connections
	ReadyWhen  nodeipc.ReadyWhen // when a Node worker is ready
	Dialect    nodeipc.Dialect   // what Node workers wait for that do not listen
	Logger     hclog.Logger      // nil: none
}

// LinkKind says how workers get their connections.
type LinkKind int

// The kinds of links.
const (
	LinkNative LinkKind = iota // from a mailbox, as package fdpass describes it
	LinkNode                   // over Node's own channel (package nodeipc)
)

func (k LinkKind) String() string { return [...]string{"native", "node"}[k] }

// Master is a Balancer whose slots a Supervisor fills with worker processes. One
// goroutine runs for each listener and one for the supervisor; they end with Run.
type Master struct {
	balancer   *Balancer
	supervisor *supervisor.Supervisor
	primary    *nodeipc.Primary // nil without Node workers
	patience   time.Duration    // with what is parked when we stop
	listeners  []net.Listener
	log        hclog.Logger
	stop       chan struct{}
	stopOnce   sync.Once
}

// New checks the configuration; Run starts everything.
func New(cfg Config) (*Master, error) {
	m, err := newMaster(cfg)
	if err != nil {
		for _, ln := range cfg.Listeners {
			ln.Close()
		}
	}
	return m, err
}

func newMaster(cfg Config) (*Master, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	// A reload doubles the number of processes if the old ones take their time.
	need := baseFiles + files.Spare + 2*filesPerProcess*cfg.Supervisor.Workers
	if limit := files.Limit(); limit < need {
		return nil, fmt.Errorf("master: the limit of open files is %d, %d workers need %d; raise it with ulimit -n or LimitNOFILE=",
			limit, cfg.Supervisor.Workers, need)
	}
	cfg.Supervisor.MaxProcesses = (files.Limit() - baseFiles - files.Spare) / filesPerProcess
	cfg.Supervisor.MaxWorkers = min(hash.MaxSlots, cfg.Supervisor.MaxProcesses/2)
	table := NewTable(1)
	cfg.Balancer.Logger = cfg.Logger.Named("balancer")
	balancer, err := NewBalancer(cfg.Balancer, table)
	if err != nil {
		return nil, err
	}
	cfg.Supervisor.Logger = cfg.Logger.Named("supervisor")
	cfg.Supervisor.Env = append(environ(&cfg.Balancer.Clients), cfg.Supervisor.Env...)
	cfg.Supervisor.Slots = slots{table}
	cfg.Supervisor.NewLink = func(supervisor.Seat) (supervisor.Link, error) {
		return mailbox.Open(balancer.Readmit)
	}
	cfg.Logger.Info("workers get connections", "link", cfg.Link.String())
	var primary *nodeipc.Primary
	if cfg.Link == LinkNode {
		primary = nodeipc.NewPrimary(nodeipc.Config{
			Listeners: cfg.Listeners,
			ReadyWhen: cfg.ReadyWhen,
			Dialect:   cfg.Dialect,
			Readmit:   balancer.Readmit,
			GiveUp:    balancer.GiveUp,
			Patience:  time.Duration(cfg.Balancer.MaxRetries) * cfg.Balancer.RetryDelay,
			Logger:    cfg.Logger.Named("node"),
		})
		cfg.Supervisor.NewLink = func(seat supervisor.Seat) (supervisor.Link, error) {
			return primary.Open(seat.Slot)
		}
	}
	super, err := supervisor.New(cfg.Supervisor)
	if err != nil {
		return nil, err
	}
	return &Master{
		balancer:   balancer,
		primary:    primary,
		supervisor: super,
		patience:   min(balancer.patience()+time.Second, cfg.Supervisor.StopTimeout),
		listeners:  cfg.Listeners,
		log:        cfg.Logger,
		stop:       make(chan struct{}),
	}, nil
}

// environ tells workers how we recognise clients.
func environ(clients *clientip.Config) []string {
	return append(clients.Rules.Environ(),
		"HANDFAST_IPV4_PREFIX="+strconv.Itoa(clients.Hash.IPv4Prefix),
		"HANDFAST_IPV6_PREFIX="+strconv.Itoa(clients.Hash.IPv6Prefix))
}

// slots shows the supervisor the table as its own interface.
type slots struct{ *Table }

func (s slots) Fill(slot int, link supervisor.Link) { s.Table.Fill(slot, link.(Worker)) }

// Run serves until Stop, and returns when every worker has ended. When ctx ends,
// before or during that, it kills them and returns at once.
func (m *Master) Run(ctx context.Context) error {
	accepting, stopAccepting := context.WithCancel(ctx)
	defer stopAccepting()
	supervising := make(chan error, 1)
	go func() { supervising <- m.supervisor.Run(ctx) }()
	serving := make(chan error, len(m.listeners))
	for _, ln := range m.listeners {
		go func() { serving <- m.balancer.Serve(accepting, ln) }()
	}

	var failed error
	left := len(m.listeners)
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
	m.supervisor.Stop()
	err := <-supervising
	cancel()
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

// Reload replaces all workers, as Supervisor.Reload does.
func (m *Master) Reload(ctx context.Context) error { return m.supervisor.Reload(ctx) }

// Scale changes the number of slots, as Supervisor.Scale does.
func (m *Master) Scale(n int) error { return m.supervisor.Scale(n) }

// ScaleBy adds n slots, or removes -n.
func (m *Master) ScaleBy(n int) error { return m.supervisor.ScaleBy(n) }

// Stats returns the balancer's counts.
func (m *Master) Stats() Stats { return m.balancer.Stats() }

func (m *Master) logSummary() {
	s := m.Stats()
	m.log.Info("stopped", "accepted", s.Accepted, "handed_off", s.HandedOff, "taken_back", s.TakenBack, "refused", s.Refused, "gone", s.Gone)
}
