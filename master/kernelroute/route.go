package kernelroute

import (
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

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
	// meetInterval is the shortest time between two lines about other processes that listen on our
	// address.
	meetInterval = time.Second
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
	balancer *balancer.Balancer // for workers that do not accept
	refuser  *balancer.Balancer // for clients whom nobody accepts and who cannot be handed off
	patience time.Duration      // with those
	tick     time.Duration      // in which it is measured
	handsOff bool               // connections can be handed to workers
	blocking bool               // workers get listeners that wait in accept, unless they change that
	log      hclog.Logger
	clock    *waitClock

	mu        sync.Mutex
	berths    []*berth          // by number
	at        []*berth          // by slot: where its clients come to
	filled    []supervisor.Link // by slot: its worker; nil: it is empty
	groups    []*reuseport.Group
	ipv4      map[*reuseport.Group]*reuseport.Group // of one for both families: the one for IPv4 in its place
	follows   bool                                  // there are groups where workers listen
	user      *syscall.Credential                   // whom they run as; nil: as we do
	closed    bool
	served    bool // some slot was filled, once
	acceptors sharedAcceptors
	failed    string // why listeners could not be put right in the latest look

	howToShare string     // what to do about workers that listen by themselves
	joined     []newcomer // who were found at our addresses, and not told of yet
	meeting    sync.Mutex
	met        time.Time // when a stranger was told of
	unmet      int       // those who were not, since

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
	Groups   []*reuseport.Group // in which slots are in order, as after Listen; the Route takes ownership with Close
	Balancer *balancer.Balancer // accepts and hands off where workers do not accept
	HandsOff bool               // connections can be handed to workers
	Blocking bool               // workers get listeners that wait in accept, unless they change that
	Sharing  string             // what to do about workers that listen by themselves

	// Follows has the Route listen where workers do: there may be no Groups yet.
	Follows bool
	User    *syscall.Credential // whom workers run as; nil: as we do

	// Finishing is told, from Serve on, of workers that have closed their listeners. It must not wait.
	Finishing func(supervisor.Link)
}

// New makes the berths of groups.
func New(cfg Config) (*Route, error) {
	refusing := cfg.Balancer.Config()
	patience := refusing.Patience()
	refusing.MaxRetries = 0
	refuser, err := balancer.New(refusing, cfg.Balancer.Table())
	if err != nil {
		return nil, err
	}
	groups := cfg.Groups
	s := &Route{
		groups:     groups,
		ipv4:       make(map[*reuseport.Group]*reuseport.Group),
		table:      cfg.Balancer.Table(),
		balancer:   cfg.Balancer,
		refuser:    refuser,
		patience:   patience,
		tick:       refusing.RetryDelay,
		handsOff:   cfg.HandsOff,
		blocking:   cfg.Blocking,
		howToShare: cfg.Sharing,
		follows:    cfg.Follows,
		user:       cfg.User,
		finishing:  cfg.Finishing,
		log:        logging.Limit(refusing.Logger, logging.Few),
		acceptors:  newSharedAcceptors(),
	}
	s.acceptors.failed = func(err error) { s.log.Error("cannot accept for a slot", "err", err) }
	s.clock = newWaitClock(s.slotOf)
	if len(groups) > 0 {
		for i := range groups[0].Members() {
			s.berths = append(s.berths, newBerth(i, i))
		}
	}
	s.at = slices.Clone(s.berths)
	s.filled = make([]supervisor.Link, len(s.at))
	for _, b := range s.at {
		b.used = true
	}
	return s, nil
}

// slotOf returns the slot that an address belongs to now.
func (s *Route) slotOf(client netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.balancer.Config().Clients.Hash.Key(client).Slot(max(len(s.at), 1))
}

// Refuser is the balancer that refuses those who cannot be handed off.
func (s *Route) Refuser() *balancer.Balancer { return s.refuser }

// Resize implements supervisor.Slots. Whoever waits in the queue of a slot that is no more
// belongs to another, if they can be handed over; else its worker serves them before it
// leaves.
func (s *Route) Resize(n int) {
	s.table.Resize(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	for slot := n; slot < len(s.at); slot++ {
		s.at[slot].left = time.Now()
	}
	s.at = s.at[:min(n, len(s.at))]
	s.filled = s.filled[:len(s.at)]
	for slot := len(s.at); slot < n; slot++ {
		b := s.awaited(slot)
		if b == nil {
			var err error
			if b, err = s.vacant(slot); err != nil {
				s.log.Error("a slot has no listener of its own", "slot", slot, "err", err)
				b = s.berths[0]
			}
		}
		s.at = append(s.at, nil)
		s.filled = append(s.filled, nil)
		s.lead(slot, b)
	}
	s.steer()
	s.updateAcceptors()
}

// awaited returns the berth of the worker that is to fill a slot next, nil if there is none.
func (s *Route) awaited(slot int) *berth {
	for _, b := range s.berths {
		for _, l := range b.leases {
			if l.slot == slot && !l.over && !b.used {
				return b
			}
		}
	}
	return nil
}

// Fill is as for supervisor.Slots.
func (s *Route) Fill(slot int, link Link) {
	if worker := link.Worker(); worker != nil {
		s.table.Fill(slot, worker)
	}
	s.mu.Lock()
	s.served = true // so there will be no other groups
	groups := s.groups
	s.mu.Unlock()
	// Without our lock, since the link may ask us for a listener under its own.
	accepts := make(map[*reuseport.Group]bool)
	for _, g := range groups {
		accepts[g] = link.Accepts(g.Addr().AddrPort())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.at[slot]
	if l := s.leaseOf(link, 0); l != nil {
		b = l.berth
	}
	s.filled[slot] = link
	b.accepts = accepts
	clear(b.doing) // to begin anew, should a loop have failed
	if s.at[slot] != b {
		s.lead(slot, b)
		s.steer()
	}
	s.updateAcceptors()
}

// Empty implements supervisor.Slots. If the next worker is about to be ready, new clients wait for
// it at its berth.
func (s *Route) Empty(slot int) {
	s.table.Empty(slot)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filled[slot] = nil
	next := s.awaited(slot)
	if next == nil && s.at[slot].spoiled {
		next, _ = s.vacant(slot) // until then they may be kept away
	}
	if next != nil {
		s.lead(slot, next)
		s.steer()
	}
	s.updateAcceptors()
}

// Hear is told what happens to workers, by the supervisor's loop (Config.OnEventInLoop). It makes a few system calls
// for each slot, and does not wait.
func (s *Route) Hear(e supervisor.Event) {
	if e.Kind == supervisor.WorkerExited || e.Kind == supervisor.WorkerGone {
		s.putRight()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leaseOf(e.Link, e.PID)
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
			s.release(l)
		}
	case supervisor.WorkerStartFailed, supervisor.WorkerGone:
		s.release(l)
	}
}
