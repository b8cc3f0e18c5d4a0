package kernelroute

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// queuePoll is the time between two looks at the queues of listeners.
	queuePoll = 5 * time.Millisecond
	// queueTime is how long clients of an empty slot wait in its queues before the master
	// accepts: as a rule a worker that died has a successor by then.
	queueTime = 100 * time.Millisecond
	// The pause between two looks at what workers have done to their listeners is repairShare times as long as
	// a look takes, 0.1 ms with two slots and 1 ms with 128, but within repairMin and repairMax.
	repairMin, repairMax = 100 * time.Millisecond, time.Second
	repairShare          = 1000
	// strangerInterval is the shortest time between two log lines about other processes that listen on our
	// address.
	strangerInterval = time.Second
)

// Route gives clients to slots by the kernel. It is the supervisor's table of slots, and keeps the listeners.
//
// While a slot is empty its clients wait in its berth's queues. If that lasts, the master accepts, and does with
// them what it does when it routes. Where workers cannot be handed connections, it lets clients wait as long
// as the balancer's patience and then accepts in order to refuse.
//
// One goroutine runs for each listener from which the master accepts, or will accept; they end with Close.
type Route struct {
	table    *balancer.Table
	hash     hash.Config        // by which the kernel finds slots
	balancer Acceptor           // for workers that do not accept
	refuser  Acceptor           // for clients that nobody accepts and that cannot be handed off
	refusing *balancer.Balancer // the same
	machine  Surroundings
	programs *reuseport.Programs
	patience time.Duration // how long those may wait
	tick     time.Duration // between two looks at how long they have
	handsOff bool          // connections can be handed to workers
	blocking bool          // workers get listeners that block, until they change that
	logger   hclog.Logger  // of what an operator causes
	log      hclog.Logger  // of what workers and clients can cause again and again
	clock    *waitClock
	census   *census

	queuesAsked chan struct{} // Serve is to look at queues; holds one

	mu        sync.Mutex
	berths    []*berth          // by number
	berthOf   []*berth          // by slot: the one that its clients come to
	filled    []supervisor.Link // by slot: its worker; nil: it is empty
	groups    []Group
	ipv4      map[Group]Group     // by group for both families: the one for IPv4 in its place
	follows   bool                // there are groups where workers listen
	came      []uint64            // by slot, by groups that are no more
	final     []uint64            // Came since Close
	uncounted bool                // there was one that nobody has counted
	user      *syscall.Credential // that workers run as; nil: as we do
	closed    bool
	served    bool // a slot was filled, once
	acceptors sharedAcceptors
	repairErr string // why the latest repair has failed; empty: it has not

	sharingRemedy   string     // for workers that listen by themselves
	strangers       []stranger // found at our addresses, and not logged yet
	warning         sync.Mutex
	strangerTold    time.Time // when a stranger was logged last
	strangersUntold int       // how many were left out since

	finishing func(supervisor.Link) // told of workers that have closed their listeners
}

// Link is a worker's link as a Route sees it. It is asked under no lock of the Route's.
type Link interface {
	supervisor.Link
	// Worker takes connections for the worker; nil: it can be handed none.
	Worker() balancer.Worker
	// Accepts tells whether the worker accepts by itself at an address. It is asked when it is ready.
	Accepts(addr netip.AddrPort) bool
}

// Config is what a Route needs.
type Config struct {
	Groups        []*reuseport.Group // in which slots are in order, as after Listen; the Route takes ownership with Close
	Balancer      *balancer.Balancer // accepts and hands off where workers do not accept
	HandsOff      bool               // connections can be handed to workers
	Blocking      bool               // workers get listeners that block, until they change that; not with HandsOff
	SharingRemedy string             // what to do about workers that listen by themselves, for the log

	// Programs are for groups that are opened, with which Came counts; the Route takes ownership with Close. nil: there are none.
	Programs *reuseport.Programs

	// Follows has the Route listen where workers do: there may be no Groups yet.
	Follows bool
	User    *syscall.Credential // that workers run as; nil: as we do

	// Finishing is told, from Serve on, of workers that have closed their listeners. It must not wait.
	Finishing func(supervisor.Link)
}

// errBlocking: accepting in order to hand off makes listeners non-blocking.
var errBlocking = errors.New("kernelroute: workers that are handed connections cannot have listeners that block")

// New makes a Route whose slots are empty, and as many as the groups have listeners.
func New(cfg Config) (*Route, error) {
	if cfg.HandsOff && cfg.Blocking {
		return nil, errBlocking
	}
	refusing := cfg.Balancer.Config()
	refusing.MaxRetries = 0
	refuser, err := balancer.New(refusing, cfg.Balancer.Table())
	if err != nil {
		return nil, err
	}
	var groups []Group
	for _, g := range cfg.Groups {
		groups = append(groups, kernelGroup{g})
	}
	r := NewAmid(cfg, groups, cfg.Balancer, refuser, theMachine(cfg.Programs))
	r.refusing = refuser
	return r, nil
}

// NewAmid is New with other listeners, acceptors and surroundings than this machine's, whose clients nobody but these acceptors refuses.
func NewAmid(cfg Config, groups []Group, accepts, refuses Acceptor, around Surroundings) *Route {
	r := newRoute(cfg, cfg.Balancer.Config(), groups)
	r.table, r.balancer, r.refuser, r.machine = cfg.Balancer.Table(), accepts, refuses, around
	r.clock.list = around.List
	return r
}

// newRoute makes a Route that has no balancers and no machine yet.
func newRoute(cfg Config, placing balancer.Config, groups []Group) *Route {
	r := &Route{
		groups:        groups,
		ipv4:          make(map[Group]Group),
		hash:          placing.Clients.Hash,
		patience:      placing.Patience(),
		tick:          placing.RetryDelay,
		handsOff:      cfg.HandsOff,
		blocking:      cfg.Blocking,
		sharingRemedy: cfg.SharingRemedy,
		follows:       cfg.Follows,
		programs:      cfg.Programs,
		user:          cfg.User,
		finishing:     cfg.Finishing,
		logger:        placing.Logger,
		log:           logging.Limit(placing.Logger, logging.Few),
		acceptors:     newSharedAcceptors(),
		queuesAsked:   make(chan struct{}, 1),
	}
	r.acceptors.failed = func(err error) { r.log.Error("cannot accept for a slot", "err", err) }
	r.clock = newWaitClock(r.slotOf)
	r.census = newCensus()
	if len(groups) > 0 {
		for i := range groups[0].Members() {
			r.berths = append(r.berths, newBerth(i, i))
		}
	}
	r.berthOf = slices.Clone(r.berths)
	r.filled = make([]supervisor.Link, len(r.berthOf))
	for _, b := range r.berthOf {
		b.used = true
	}
	return r
}

// slotOf returns the slot that a client's connection to one of our addresses belongs to now.
func (r *Route) slotOf(local, client netip.Addr) int {
	if slot, ok := r.hash.Slots.Slot(local); ok {
		return slot
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hash.Key(client).Slot(max(len(r.berthOf), 1))
}

// Refuser returns the balancer that refuses connections which cannot be handed off.
func (r *Route) Refuser() *balancer.Balancer { return r.refusing }

// Resize implements supervisor.Slots. Connections in the queue of a slot that is no more go to other slots
// if they can be handed off; else its worker serves them before it leaves.
func (r *Route) Resize(n int) {
	r.table.Resize(n)
	r.mu.Lock()
	defer r.mu.Unlock()
	for slot := n; slot < len(r.berthOf); slot++ {
		r.berthOf[slot].left = time.Now()
	}
	r.berthOf = r.berthOf[:min(n, len(r.berthOf))]
	r.filled = r.filled[:len(r.berthOf)]
	for slot := len(r.berthOf); slot < n; slot++ {
		b := r.nextBerth(slot)
		if b == nil {
			var err error
			if b, err = r.vacant(slot); err != nil {
				r.log.Error("a slot has no listener of its own", "slot", slot, "err", err)
				b = r.berths[0]
			}
		}
		r.berthOf = append(r.berthOf, nil)
		r.filled = append(r.filled, nil)
		r.moveSlot(slot, b)
	}
	r.steer()
	r.updateAcceptors()
}

// nextBerth returns the berth of the worker that is about to fill a slot; nil: there is none.
func (r *Route) nextBerth(slot int) *berth {
	for _, b := range r.berths {
		for _, l := range b.leases {
			if l.slot == slot && !l.over && !b.used {
				return b
			}
		}
	}
	return nil
}

// Fill puts a worker in a slot, as supervisor.Slots says: from now on the slot's clients come to its berth.
func (r *Route) Fill(slot int, link Link) {
	if worker := link.Worker(); worker != nil {
		r.table.Fill(slot, worker)
	}
	r.mu.Lock()
	r.served = true // from now on no other groups are opened
	groups := r.groups
	r.mu.Unlock()
	// Without our lock, since the link may ask us for a listener under its own.
	accepts := make(map[Group]bool)
	for _, g := range groups {
		accepts[g] = link.Accepts(g.Addr().AddrPort())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.berthOf[slot]
	if l := r.leaseOf(link, 0); l != nil {
		b = l.berth
	}
	r.filled[slot] = link
	b.accepts = accepts
	clear(b.doing) // to begin anew, should a loop have failed
	if r.berthOf[slot] != b {
		r.moveSlot(slot, b)
		r.steer()
	}
	r.updateAcceptors()
}

// Empty implements supervisor.Slots. New clients wait at the berth of the worker that is about to fill the slot, if
// there is one.
func (r *Route) Empty(slot int) {
	r.table.Empty(slot)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.filled[slot] = nil
	next := r.nextBerth(slot)
	if next == nil && r.berthOf[slot].spoiled {
		next, _ = r.vacant(slot) // a locked filter may keep clients away here
	}
	if next != nil {
		r.moveSlot(slot, next)
		r.steer()
	}
	r.updateAcceptors()
}

// HandleEvent notes what happens to workers. The supervisor's loop calls it (Config.OnEventInLoop): it makes a few system
// calls for each slot, and does not wait.
func (r *Route) HandleEvent(e supervisor.Event) {
	if e.Kind == supervisor.WorkerExited || e.Kind == supervisor.WorkerGone {
		r.repairListeners()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.leaseOf(e.Link, e.PID)
	if l == nil {
		return
	}
	switch e.Kind {
	case supervisor.WorkerStarted:
		l.pid = e.PID
	case supervisor.WorkerTerminated, supervisor.WorkerKilled:
		l.over = true
	case supervisor.WorkerExited:
		if len(e.Rest) == 0 { // else what is left of it has the listeners, too
			r.release(l)
		}
	case supervisor.WorkerStartFailed, supervisor.WorkerGone:
		r.release(l)
	}
}
