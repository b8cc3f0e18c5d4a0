package kernelroute

import (
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
	// accepts: a worker that died has a successor by then.
	queueTime = 100 * time.Millisecond
	// repairMin and repairMax are the times between two looks at what workers that live have done to
	// their listeners. A look takes 0.1 ms with two slots and 1 ms with 128, and repairShare times
	// as long is the pause after it.
	repairMin, repairMax = 100 * time.Millisecond, time.Second
	repairShare          = 1000
	// strangerInterval is the shortest time between two lines about other processes that listen on our
	// address.
	strangerInterval = time.Second
)

// Route is the slots of a Master whose clients the kernel gives to them (package reuseport). Each
// worker that lives has a berth, a listener per address, and a slot's clients come to the berth of
// the worker that fills it. So a worker that is replaced gets no connection any more from one
// moment to the next, without a word to it, and if its successor dies, it gets them again. Whose
// worker accepts concerns nobody here. For those who do not, the master accepts and hands off
// (sharedacceptors.go).
//
// While a slot is empty its clients wait in its berth's queues. If that lasts, the
// master accepts, and does with them what it does when it routes. Where workers cannot be
// handed connections it waits for as long as its patience, and then accepts to refuse.
type Route struct {
	table    *balancer.Table
	hash     hash.Config        // by which the kernel finds slots
	balancer acceptor           // for workers that do not accept
	refuser  acceptor           // for clients that nobody accepts and that cannot be handed off
	refusing *balancer.Balancer // the same
	machine  surroundings
	patience time.Duration // with those
	tick     time.Duration // in which it is measured
	handsOff bool          // connections can be handed to workers
	blocking bool          // workers get listeners that wait in accept, unless they change that
	logger   hclog.Logger  // of what an operator causes
	log      hclog.Logger  // of what workers and clients can cause again and again
	clock    *waitClock

	mu        sync.Mutex
	berths    []*berth          // by number
	berthOf   []*berth          // by slot: where its clients come to
	filled    []supervisor.Link // by slot: its worker; nil: it is empty
	groups    []group
	ipv4      map[group]group     // of one for both families: the one for IPv4 in its place
	follows   bool                // there are groups where workers listen
	user      *syscall.Credential // whom they run as; nil: as we do
	closed    bool
	served    bool // some slot was filled, once
	acceptors sharedAcceptors
	repairErr string // why listeners could not be put right in the latest look

	sharingRemedy   string     // what to do about workers that listen by themselves
	strangers       []stranger // who were found at our addresses, and not told of yet
	warning         sync.Mutex
	strangerTold    time.Time // when a stranger was told of
	strangersUntold int       // those who were not, since

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
	Blocking      bool               // workers get listeners that wait in accept, unless they change that
	SharingRemedy string             // what to do about workers that listen by themselves

	// Follows has the Route listen where workers do: there may be no Groups yet.
	Follows bool
	User    *syscall.Credential // whom workers run as; nil: as we do

	// Finishing is told, from Serve on, of workers that have closed their listeners. It must not wait.
	Finishing func(supervisor.Link)
}

// New makes the berths of groups.
func New(cfg Config) (*Route, error) {
	refusing := cfg.Balancer.Config()
	refusing.MaxRetries = 0
	refuser, err := balancer.New(refusing, cfg.Balancer.Table())
	if err != nil {
		return nil, err
	}
	var groups []group
	for _, g := range cfg.Groups {
		groups = append(groups, kernelGroup{g})
	}
	r := newRoute(cfg, cfg.Balancer.Config(), groups)
	r.table, r.balancer, r.refuser, r.refusing = cfg.Balancer.Table(), cfg.Balancer, refuser, refuser
	r.machine = theMachine()
	return r, nil
}

// newRoute makes a Route without balancers, and on no machine.
func newRoute(cfg Config, placing balancer.Config, groups []group) *Route {
	r := &Route{
		groups:        groups,
		ipv4:          make(map[group]group),
		hash:          placing.Clients.Hash,
		patience:      placing.Patience(),
		tick:          placing.RetryDelay,
		handsOff:      cfg.HandsOff,
		blocking:      cfg.Blocking,
		sharingRemedy: cfg.SharingRemedy,
		follows:       cfg.Follows,
		user:          cfg.User,
		finishing:     cfg.Finishing,
		logger:        placing.Logger,
		log:           logging.Limit(placing.Logger, logging.Few),
		acceptors:     newSharedAcceptors(),
	}
	r.acceptors.failed = func(err error) { r.log.Error("cannot accept for a slot", "err", err) }
	r.clock = newWaitClock(r.slotOf)
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

// slotOf returns the slot that an address belongs to now.
func (r *Route) slotOf(client netip.Addr) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hash.Key(client).Slot(max(len(r.berthOf), 1))
}

// Refuser is the balancer that refuses those who cannot be handed off.
func (r *Route) Refuser() *balancer.Balancer { return r.refusing }

// Resize implements supervisor.Slots. Whoever waits in the queue of a slot that is no more
// belongs to another, if they can be handed over; else its worker serves them before it
// leaves.
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

// nextBerth returns the berth of the worker that is to fill a slot next, nil if there is none.
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

// Fill is as for supervisor.Slots.
func (r *Route) Fill(slot int, link Link) {
	if worker := link.Worker(); worker != nil {
		r.table.Fill(slot, worker)
	}
	r.mu.Lock()
	r.served = true // so there will be no other groups
	groups := r.groups
	r.mu.Unlock()
	// Without our lock, since the link may ask us for a listener under its own.
	accepts := make(map[group]bool)
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

// Empty implements supervisor.Slots. If the next worker is about to be ready, new clients wait for
// it at its berth.
func (r *Route) Empty(slot int) {
	r.table.Empty(slot)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.filled[slot] = nil
	next := r.nextBerth(slot)
	if next == nil && r.berthOf[slot].spoiled {
		next, _ = r.vacant(slot) // until then they may be kept away
	}
	if next != nil {
		r.moveSlot(slot, next)
		r.steer()
	}
	r.updateAcceptors()
}

// HandleEvent is told what happens to workers, by the supervisor's loop (Config.OnEventInLoop). It makes a few system calls
// for each slot, and does not wait.
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
