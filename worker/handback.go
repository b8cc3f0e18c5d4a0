package worker

import (
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
)

const (
	// handBackTries is how often a connection is handed back to a master that does not keep up, handBackPause apart. After that
	// its request is served where it is.
	handBackTries = 500
	handBackPause = 2 * time.Millisecond
)

// handBack gives connections back to the master between two requests, and knows which: those whose next request belongs to another
// slot, and, once the worker drains, all that are looked at. Where the master wants no more of that it passes those that come and go
// straight to the worker of the other slot (passage.go).
//
// It has a descriptor of the mailbox for itself, since it goes on when the listener has left that, until the last connection is
// closed.
type handBack struct {
	conn   *fdpass.Conn
	rules  forwarded.Rules // that the master places by
	config hash.Config
	slot   int
	route  forwarded.Token // by which sessions name us; zero: by none
	slots  atomic.Int32    // how many there are; 0: nothing is to be handed back

	named      atomic.Uint32 // requests that have named us
	unreported atomic.Bool   // one has, since the last report
	reportSoon func()        // nil: nobody wants to know

	changed  atomic.Int64 // when that did last
	replaced atomic.Bool  // another worker is in our slot: only requests that name us belong here
	adopted  adopted

	listener  *Listener
	entrances [fdpass.MaxPassages]atomic.Pointer[fdpass.Conn] // of the passages of other slots' workers
	exit      *fdpass.Conn                                    // of ours; nil: there is none. It belongs to receivePassed
	passed    atomic.Uint32                                   // connections that have come by it

	mu       sync.Mutex
	draining atomic.Bool        // all are to be handed back; written under mu
	looked   map[*look]struct{} // at open connections
	away     away
	expiry   *time.Timer // of those that are away; nil: it is not needed

	awayTimeout time.Duration
}

// newHandBack borrows the mailbox. It returns nil if the master takes nothing back.
func newHandBack(mailbox *os.File) (*handBack, error) {
	place, ok := Self()
	if os.Getenv(fdpass.EnvHandBack) != "1" || !ok {
		return nil, nil
	}
	rules, err := rulesOfMaster()
	if err != nil {
		return nil, nil // KeepClientsApart says why
	}
	return openHandBack(mailbox, rules, hashOfMaster(), place)
}

func openHandBack(mailbox *os.File, rules forwarded.Rules, config hash.Config, place Place) (*handBack, error) {
	conn, err := duplicateMailbox(mailbox)
	if err != nil {
		return nil, err
	}
	conn.SendDetails()
	h := &handBack{conn: conn, rules: rules, config: config, slot: place.Slot, route: forwarded.ParseToken(Route()), looked: make(map[*look]struct{}),
		away: make(away), awayTimeout: awayTimeout}
	h.slots.Store(int32(place.Slots))
	return h, nil
}

// hashOfMaster is by what the master makes keys of clients.
func hashOfMaster() hash.Config {
	config := hash.DefaultConfig()
	for name, bits := range map[string]*int{fdpass.EnvIPv4Prefix: &config.IPv4Prefix, fdpass.EnvIPv6Prefix: &config.IPv6Prefix} {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			*bits = n
		}
	}
	if seed, err := strconv.ParseUint(os.Getenv(fdpass.EnvSeed), 10, 32); err == nil {
		config.Seed = uint32(seed)
	}
	if own, err := hash.ParseSlotAddresses(os.Getenv(fdpass.EnvSlotAddress)); err == nil {
		config.Slots = own
	}
	return config
}

// since is when another worker has taken the slot over, or now if that is not known.
func (h *handBack) since() time.Time {
	if h == nil || !h.replaced.Load() {
		return time.Now()
	}
	return time.Unix(0, h.changed.Load())
}

// resize says how many slots there are, and whether another worker is in ours.
func (h *handBack) resize(slots int, replaced bool) {
	if h != nil && slots >= 0 && slots <= hash.MaxSlots {
		h.adopted.forget() // they may be another slot's now
		if h.replaced.Swap(replaced) != replaced {
			h.changed.Store(time.Now().UnixNano())
		}
		h.slots.Store(int32(slots))
		for slot := slots; slots > 0 && slot < len(h.entrances); slot++ {
			h.setEntrance(slot, nil)
		}
	}
}

// looksAt tells whether requests on a connection may belong to several slots: their heads matter, since its peer is a trusted proxy or
// clients say themselves what they are recognised by, and it has not come to a slot's own address.
func (h *handBack) looksAt(local netip.AddrPort, source netip.Addr) bool {
	if h == nil || h.rules.Look(source) == forwarded.Nowhere {
		return false
	}
	_, addressed := h.config.Slots.Slot(local.Addr())
	return !addressed
}

// anyone stands for a slot that the master has to find.
const anyone = -1

// isElsewhere tells whether a request from source belongs to another worker: to the one that it names, or else to the one in its
// client's slot, which it returns.
func (h *handBack) isElsewhere(r *forwarded.Request, source netip.Addr) (slot int, elsewhere bool) {
	slots := int(h.slots.Load())
	if slots == 0 {
		return anyone, false
	}
	ours := false
	for token := range r.Tokens {
		switch {
		case token == h.route:
			h.wasNamed()
			return anyone, false
		case !h.adopted.has(token):
			return anyone, true
		}
		ours = true
	}
	if h.replaced.Load() {
		return anyone, true
	}
	client := r.Client(source, h.config)
	if ours || h.rules.Anywhere && !client.Told {
		return anyone, false
	}
	slot = client.Key.Slot(slots)
	return slot, slot != h.slot
}

// wasNamed counts a request that names us.
func (h *handBack) wasNamed() {
	h.named.Add(1)
	if h.reportSoon != nil && !h.unreported.Load() && !h.unreported.Swap(true) {
		h.reportSoon()
	}
}

// reported returns how many requests have named us, and how many connections were passed to us, for a report.
func (h *handBack) reported() (named, passed uint32) {
	if h == nil {
		return 0, 0
	}
	h.unreported.Store(false) // before it is read
	return h.named.Load(), h.passed.Load()
}

// maxAdopted bounds the tokens that a worker remembers to have adopted. Those that are forgotten cost their next requests the way by
// the master once more.
const maxAdopted = 4096

// adopted are tokens of workers that are no more, whose sessions the master brings here.
type adopted struct {
	mu     sync.Mutex
	tokens map[forwarded.Token]struct{}
}

// add notes those of a request that the master has brought.
func (a *adopted) add(r *forwarded.Request, own forwarded.Token) {
	for token := range r.Tokens {
		if token == own {
			return
		}
		a.mu.Lock()
		if a.tokens == nil || len(a.tokens) >= maxAdopted {
			a.tokens = make(map[forwarded.Token]struct{})
		}
		a.tokens[token] = struct{}{}
		a.mu.Unlock()
	}
}

func (a *adopted) has(token forwarded.Token) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, has := a.tokens[token]
	return has
}

func (a *adopted) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens = nil
}

// drains tells whether all connections are to be handed back.
func (h *handBack) drains() bool { return h.draining.Load() && h.slots.Load() > 0 }

// drain hands back, now and from now on, all connections that are between two requests.
func (h *handBack) drain() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining.Store(true)
	for _, l := range h.away {
		h.giveUp(l)
	}
	for l := range h.looked {
		if l.waiting.Load() {
			l.conn.socket.Load().SetReadDeadline(time.Unix(1, 0)) // it sees that we drain
		}
	}
}

// behindDrain returns when drain does not interrupt a connection any more that waits no longer.
func (h *handBack) behindDrain() {
	h.mu.Lock()
	defer h.mu.Unlock()
}

// pending tells whether connections are still to be handed back.
func (h *handBack) pending() bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.looked {
		if l.leaves() {
			return true
		}
	}
	return false
}

func (h *handBack) add(l *look) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.looked[l] = struct{}{}
}

// close ends it when the last connection is closed. The caller holds the listener's lock, and so nothing is being passed to us.
func (h *handBack) close() {
	if h == nil {
		return
	}
	h.conn.Close()
	if h.exit != nil {
		h.exit.EndReceiving()
	}
	for slot := range h.entrances {
		h.setEntrance(slot, nil)
	}
}
