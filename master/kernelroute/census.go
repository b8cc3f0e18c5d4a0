package kernelroute

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/sockdiag"
)

const (
	// censusLook is the shortest time between two looks at the connections that are open.
	censusLook = time.Second
	// censusShare bounds what these looks take: of so many parts of a processor's time, one. A look at 100,000 connections takes some
	// tens of milliseconds.
	censusShare = 20
	// censusSample is the shortest time between two looks that nobody has asked for (Sample), and sampleShare what censusShare is to
	// others.
	censusSample = 5 * time.Second
	sampleShare  = 200
)

// openStates are those of a connection that a process may have.
var openStates = []sockdiag.State{sockdiag.Established, sockdiag.FinWait1, sockdiag.FinWait2, sockdiag.CloseWait, sockdiag.LastAck, sockdiag.Closing}

// census counts the connections that slots' clients have open, which the kernel lists (package sockdiag). It needs no privilege.
type census struct {
	each func(port uint16, visit func(*sockdiag.Socket), states ...sockdiag.State) error

	mu      sync.Mutex // held for a look, so others wait for its answer
	at      time.Time  // of the latest look
	took    time.Duration
	bySlot  []int // nil: not known
	sampled time.Time
	clients []netip.Addr // of a sample; kept for the next
}

func newCensus() *census { return &census{each: sockdiag.Each} }

// Open returns how many connections are open by slot: those of clients that belong to the slot now, also if a worker has them that was
// replaced, or another one since the number of slots has changed. Those that wait to be accepted are in Queue. It is nil where the
// kernel does not tell. A look is not asked of the kernel again within a second, or twenty times what the latest has taken.
func (r *Route) Open() []int {
	c := r.census
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || time.Since(c.at) > max(censusLook, censusShare*c.took) {
		r.countOpen(nil)
	}
	return slices.Clone(c.bySlot)
}

// Sample has the balancer know whose connections are open (balancer.NoteOpen), if it is time for that. Call it every now and then.
func (r *Route) Sample() {
	c := r.census
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sampled.IsZero() && time.Since(c.sampled) < max(censusSample, sampleShare*c.took) {
		return
	}
	c.sampled = time.Now()
	c.clients = c.clients[:0]
	r.countOpen(func(s *sockdiag.Socket) { c.clients = append(c.clients, s.Remote.Addr()) })
	r.balancer.NoteOpen(c.clients)
}

// countOpen looks, and has each see the connections that no slot's own address has placed, if it is not nil. The census is locked.
func (r *Route) countOpen(each func(*sockdiag.Socket)) {
	c := r.census
	listeners := make(map[uint16][]netip.Addr) // by port
	r.mu.Lock()
	slots := max(len(r.berthOf), 1)
	for _, g := range r.groups {
		at := g.Bound().AddrPort()
		listeners[at.Port()] = append(listeners[at.Port()], at.Addr())
	}
	r.mu.Unlock()
	began := time.Now()
	bySlot := make([]int, slots)
	var failed error
	for port, addrs := range listeners {
		err := c.each(port, func(s *sockdiag.Socket) {
			if !s.Accepted() || !slices.ContainsFunc(addrs, s.ComesTo) {
				return
			}
			slot, addressed := slotAmong(r.hash, s, slots)
			if slot < slots {
				bySlot[slot]++
			}
			if !addressed && each != nil {
				each(s)
			}
		}, openStates...)
		if err != nil {
			failed = err
		}
	}
	c.at, c.bySlot = time.Now(), bySlot
	if c.took = time.Since(began); failed != nil {
		c.bySlot = nil
	}
}

// slotAmong returns the slot that a connection belongs to, and whether that is by the slot's own address; then there may be no such slot.
func slotAmong(config hash.Config, s *sockdiag.Socket, slots int) (slot int, addressed bool) {
	if slot, ok := config.Slots.Slot(s.Local.Addr()); ok {
		return slot, true
	}
	return config.Key(s.Remote.Addr()).Slot(slots), false
}
