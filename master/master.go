package master

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/openconns"
	"github.com/handfast/handfast/master/sdnotify"
	"github.com/handfast/handfast/master/supervisor"
)

// Master serves clients with worker processes: a route gives clients to slots, a Supervisor fills slots
// with workers, and a link connects each worker with its slot. One goroutine runs for each listener and
// one for the supervisor; they end with Run.
type Master struct {
	balancer   *balancer.Balancer
	route      route
	kind       *row   // of workers' links
	names      *names // of workers; nil: no session names them
	common     common // to them
	supervisor *supervisor.Supervisor
	node       *nodeipc.Primary // common, of LinkNode
	patience   time.Duration    // with what is parked when we stop

	name, version string
	started       time.Time
	link          LinkKind
	requests      mailbox.Requests
	// requestsDecide: what a request says decides about its worker, not only where its connection comes from or came to.
	requestsDecide bool
	warned         int // the last generation of which a worker could not do what is requested; of handleEvent

	command     []string
	drainSignal syscall.Signal
	drainsTold  bool // drainSignal is one on which this program is known to finish
	lossTold    bool // that it does not; of handleEvent
	observer    observer
	elsewhere   *elsewhere
	several     *several
	advice      *advice
	connections *openconns.Finder // of workers

	access    hclog.Logger  // nil: none
	log       hclog.Logger  // of what an operator causes
	few       hclog.Logger  // of what workers can cause again and again
	stop      chan struct{} // closed by Stop
	ending    chan struct{} // closed when the delay after that is over
	stopOnce  sync.Once
	endOnce   sync.Once
	stopDelay time.Duration

	replacing atomic.Bool // the program
	upgraded  atomic.Pointer[Upgrade]
	parked    []balancer.SavedParked // by the program before
}

// New checks the configuration; Run starts everything.
func New(cfg Config) (*Master, error) {
	m, err := newMaster(cfg)
	if err != nil {
		cfg.close()
	}
	return m, err
}

func newMaster(cfg Config) (*Master, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.bound()
	m := &Master{
		kind:      cfg.Link.row(),
		common:    nothing{},
		name:      cfg.Name,
		version:   cfg.Version,
		started:   time.Now(),
		link:      cfg.Link,
		requests:  cfg.requests(),
		command:   cfg.Supervisor.Command,
		access:    cfg.AccessLog,
		log:       cfg.Logger,
		few:       logging.Limit(cfg.Logger, logging.Few),
		stop:      make(chan struct{}),
		ending:    make(chan struct{}),
		stopDelay: cfg.StopDelay,
	}
	m.upgraded.Store(new(Upgrade))
	m.observer.warn = m.warnCrowded
	m.elsewhere = newElsewhere(m.listensOn, m.warnElsewhere)
	m.several = newSeveral(m.sharing, m.warnSeveral)
	m.advice = newAdvice(m.adviseSlow, m.adviseFailed)
	m.connections = openconns.New(func() []uint16 { return ports(m.route.addresses()) })
	m.chooseDraining(cfg.DrainSignal)
	if err := m.balance(&cfg); err != nil {
		return nil, err
	}
	if err := m.supervise(&cfg); err != nil {
		return nil, err
	}
	return m, nil
}

// balance makes the balancer and the route.
func (m *Master) balance(cfg *Config) (err error) {
	if m.access != nil {
		cfg.Balancer.LogOutcomes(m.logOutcome)
	}
	cfg.Balancer.Logger = cfg.Logger.Named("balancer")
	if cfg.namesWorkers() {
		m.names = newNames(cfg.names)
		if m.names.told = len(cfg.Balancer.Clients.Rules.Sessions) > 0; m.names.told {
			cfg.Balancer.Clients.Names = m.names.reader
		}
	}
	if m.balancer, err = balancer.New(cfg.Balancer, balancer.NewTable(1)); err != nil {
		return err
	}
	m.requestsDecide = cfg.Balancer.Clients.Rules.Looks()
	if m.names != nil {
		m.names.table = m.balancer.Table()
		if cfg.names != nil {
			m.names.table.RestoreSessionCounts(cfg.names.Counts[0], cfg.names.Counts[1])
		}
		if cfg.DrainAffinity > 0 {
			m.names.table.KeepClients(cfg.DrainAffinity)
		}
	}
	m.patience = min(m.balancer.Patience()+time.Second, cfg.Supervisor.StopTimeout)
	if m.route, err = m.newRoute(cfg); err != nil {
		return err
	}
	if m.kind.common != nil {
		m.common = m.kind.common(m, cfg)
	}
	m.log.Debug("workers get connections", "link", m.kind.name)
	return nil
}

// supervise makes the supervisor, with what the program before has left.
func (m *Master) supervise(cfg *Config) (err error) {
	s := &cfg.Supervisor
	s.Logger = logging.Limit(cfg.Logger.Named("supervisor"), supervisorRate)
	s.Env = slices.Concat(environ(&cfg.Balancer.Clients, m.route.addresses()), draining(s), s.Env)
	s.Slots, s.NewLink = m.route, m.openLink
	s.LogNotReady = []any{"link", m.kind.name, "change_with", "--ready-timeout"}
	s.OnEventInLoop = func(e supervisor.Event) {
		m.route.handleEvent(e)
		if e.Kind == supervisor.GaveUp {
			m.Stop()
			m.EndStopDelay()
		}
	}
	if m.names != nil {
		m.names.lingers = cfg.lingers()
		if !cfg.seesRequests() {
			m.names.heard = m.connections.Heard
		}
		s.LingerUntil = func(link supervisor.Link, replaced time.Time) time.Time {
			return m.names.lastCall(link, replaced).Add(m.names.lingers)
		}
	}
	s.OnEvent = func(e supervisor.Event) {
		m.handleEvent(e)
		if cfg.OnEvent != nil {
			cfg.OnEvent(e)
		}
	}
	if cfg.HearNotices {
		s.NewNotices = func() (supervisor.Notices, error) {
			r, err := sdnotify.Open(s.Watchdog)
			if err != nil {
				return nil, err
			}
			return r, nil
		}
	}
	if b := s.Resume; b != nil {
		s.RestoreNotices = sdnotify.Restore(b)
		s.RestoreLink = m.restoreLink(b)
		if err := m.resume(cfg.resume, b); err != nil {
			return err
		}
		if err := m.common.Restore(b); err != nil {
			return err
		}
	}
	m.supervisor, err = supervisor.New(*s)
	return err
}

// openLink makes the link of a worker that is about to be started.
func (m *Master) openLink(seat supervisor.Seat) (supervisor.Link, error) {
	return m.route.open(seat, func(l *kernelroute.Lease) (*workerLink, error) {
		link, err := m.kind.made(m.kind.open(m, seat, l))
		if err == nil {
			link.lease = l
			m.names.open(link, seat)
		}
		return link, err
	})
}

// handleEvent is told what happens to workers, in order.
func (m *Master) handleEvent(e supervisor.Event) {
	m.warnIncapable(e)
	m.elsewhere.handleEvent(e)
	m.several.handleEvent(e)
	m.advice.handleEvent(e)
	m.noteLoss(e)
}

// warnIncapable says, once in each generation, which limits have no effect on a worker that is ready.
func (m *Master) warnIncapable(e supervisor.Event) {
	worker := known(e.Link).reports
	if worker == nil || e.Kind != supervisor.WorkerReady || e.Generation == m.warned {
		return
	}
	var without []string
	if m.requests.MaxConnections > 0 && worker.MaxConnections() == 0 {
		without = append(without, "--max-connections-per-slot: it has not reported its connections before it was ready")
	}
	if m.requestsDecide && m.requests.Slots != nil && !known(e.Link).eachRequest() {
		without = append(without, "handing connections back: the first request on one decides about the slot of all; turn off the proxy's pool of connections, or have it choose slots (--slot-address)")
	}
	if len(without) > 0 {
		m.warned = e.Generation
		m.few.Warn("worker cannot be held to everything", "slot", e.Slot, "pid", e.PID, "generation", e.Generation,
			"without", strings.Join(without, "; "))
	}
}

// Run serves until Stop, and returns when every worker has ended. When ctx ends,
// before or during that, it kills them and returns at once.
func (m *Master) Run(ctx context.Context) error {
	if u := m.upgraded.Load(); u.Count > 0 {
		m.log.Info("upgraded", "from", u.From, "to", m.version, "parked", len(m.parked))
	}
	accepting, stopAccepting := context.WithCancel(ctx)
	defer stopAccepting()
	if len(m.parked) > 0 {
		m.balancer.ReadmitParked(m.parked)
	}
	observing, blind := context.WithCancel(ctx)
	var observers sync.WaitGroup
	observers.Go(func() { m.observe(observing) })
	defer observers.Wait()
	defer blind()
	supervising, serving := make(chan error, 1), make(chan error, 1)
	go func() { supervising <- m.supervisor.Run(ctx) }()
	go func() { serving <- m.route.serve(accepting, ctx, m.patience) }()
	failed, served := m.awaitStop(ctx, serving)

	// Accepted is promised: first what the kernel has accepted, then what is
	// parked or queued, while there still are workers to take it; then the workers.
	stopAccepting()
	if !served {
		failed = <-serving
	}
	waiting, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	m.balancer.Shutdown(waiting)
	m.awaitQueues(waiting)
	if m.requests.Slots != nil {
		m.requests.Slots.Set(0) // nobody is left to take what is handed back
	}
	m.common.Stop()
	m.supervisor.Stop()
	err := <-supervising
	m.elsewhere.close()
	m.several.close()
	m.advice.close()
	cancel()
	m.route.close(waiting)
	m.balancer.Shutdown(waiting) // what the last workers left in their mailboxes
	m.common.Close()
	m.logSummary()
	return errors.Join(failed, err)
}

// queuePause is the time between two looks at the queues of workers that are soon to finish.
const queuePause = 5 * time.Millisecond

// awaitQueues waits until workers have accepted what lies in their queues, or ctx ends. Other links tell a worker to finish by a
// word that it reads when it has read all connections.
func (m *Master) awaitQueues(ctx context.Context) {
	for m.isQueued() {
		select {
		case <-time.After(queuePause):
		case <-ctx.Done():
			return
		}
	}
}

func (m *Master) isQueued() bool {
	snapshot, _ := m.supervisor.Snapshot()
	workers := slices.Clone(snapshot.Draining)
	for _, s := range snapshot.Slots {
		if s.Worker != nil {
			workers = append(workers, s.Worker)
		}
	}
	return slices.ContainsFunc(workers, func(w *supervisor.WorkerStatus) bool {
		l := known(w.Link)
		return l.queued != nil && l.queued()
	})
}

// awaitStop waits until nothing more is to be accepted, or nothing is accepted any more: served, and why.
func (m *Master) awaitStop(ctx context.Context, serving <-chan error) (failed error, served bool) {
	for _, asked := range []<-chan struct{}{m.stop, m.ending} {
		select {
		case <-asked:
		case <-ctx.Done():
			return nil, false
		case failed = <-serving:
			m.log.Error("cannot accept any more, stopping", "err", failed)
			return failed, true
		}
	}
	return nil, false
}

// Stop ends Run. For Config.StopDelay everything goes on, except that Stopping is closed, and that no reload, scale or upgrade begins any more. Then
// nothing more is accepted, what is parked is delivered or refused, and the workers finish what they have. It does not wait.
func (m *Master) Stop() {
	m.stopOnce.Do(func() {
		m.supervisor.EndRequests()
		close(m.stop)
		if m.stopDelay <= 0 {
			m.log.Info("stopping")
			m.EndStopDelay()
			return
		}
		m.log.Info("stopping", "accepts_for", m.stopDelay.String())
		time.AfterFunc(m.stopDelay, m.EndStopDelay)
	})
}

// EndStopDelay cuts the delay short that Stop has begun.
func (m *Master) EndStopDelay() { m.endOnce.Do(func() { close(m.ending) }) }

// StopDelay is Config.StopDelay.
func (m *Master) StopDelay() time.Duration { return m.stopDelay }

// isEnding tells whether Stop was called, and the delay is over.
func (m *Master) isEnding() bool { return isClosed(m.ending) }

// Stopping is closed when Stop is called.
func (m *Master) Stopping() <-chan struct{} { return m.stop }

// Ping returns when the supervisor has been seen alive, or ctx ends.
func (m *Master) Ping(ctx context.Context) error { return m.supervisor.Ping(ctx) }

func (m *Master) isStopping() bool { return isClosed(m.stop) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
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

// DrainLingering has workers that linger drain now, as Supervisor.DrainLingering does.
func (m *Master) DrainLingering(asked func(supervisor.Seat) bool) (int, error) {
	return m.supervisor.DrainLingering(asked)
}

// Scale changes the number of slots, as Supervisor.Scale does.
func (m *Master) Scale(n int) error { return m.supervisor.Scale(n) }

// ScaleBy adds n slots, or removes -n.
func (m *Master) ScaleBy(n int) error { return m.supervisor.ScaleBy(n) }

// Stats returns the balancers' counts. Connections that workers accept for themselves are
// nowhere counted.
func (m *Master) Stats() (all balancer.Stats) {
	for _, b := range m.route.balancers() {
		all.Add(b.Stats())
	}
	return all
}

// logSummary says what is known of all connections. Where workers accept for themselves that is what the master
// refused, what it accepted while a slot was empty, and if the kernel counts, the handshakes of all.
func (m *Master) logSummary() {
	s := m.Stats()
	fields := []any{"accepted", s.Accepted, "handed_off", s.HandedOff, "taken_back", s.TakenBack, "refused", s.Refused, "gone", s.Gone}
	switch {
	case m.route.acceptsAll():
	case s.Accepted == 0:
		fields = []any{"refused", s.Refused}
	default:
		fields[0] = "accepted_by_master"
	}
	if came, all := m.route.came(); came != nil && !m.route.acceptsAll() {
		fields = append([]any{"handshakes", all, "by_slot", strings.Trim(fmt.Sprint(came), "[]")}, fields...)
	}
	m.log.Info("stopped", fields...)
}
