package worker

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/hash"
)

const (
	// handBackTries is how often a connection is handed back to a master that does not keep up, handBackPause apart. After that
	// its request is served where it is.
	handBackTries = 500
	handBackPause = 2 * time.Millisecond
)

// handBack gives connections back to the master between two requests, and knows which: those whose next request belongs to another
// slot, and, once the worker drains, all that are looked at.
//
// It has a descriptor of the mailbox for itself, since it goes on when the listener has left that, until the last connection is
// closed.
type handBack struct {
	conn   *fdpass.Conn
	rules  forwarded.Rules // that the master places by
	config hash.Config
	slot   int
	slots  atomic.Int32 // how many there are; 0: nothing is to be handed back

	mu       sync.Mutex
	draining atomic.Bool        // all are to be handed back; written under mu
	looked   map[*look]struct{} // at open connections
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
	h := &handBack{conn: conn, rules: rules, config: config, slot: place.Slot, looked: make(map[*look]struct{})}
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

// resize says how many slots there are.
func (h *handBack) resize(slots int) {
	if h != nil && slots >= 0 && slots <= hash.MaxSlots {
		h.slots.Store(int32(slots))
	}
}

// looksAt tells whether requests on a connection may belong to several slots: its peer is a trusted proxy, and it has not come to
// a slot's own address.
func (h *handBack) looksAt(local, remote netip.AddrPort) bool {
	if h == nil || !h.rules.Believe(remote.Addr()) {
		return false
	}
	_, addressed := h.config.Slots.Slot(local.Addr())
	return !addressed
}

// isElsewhere tells whether a client belongs to another slot.
func (h *handBack) isElsewhere(key hash.Key) bool {
	slots := int(h.slots.Load())
	return slots > 0 && key.Slot(slots) != h.slot
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
	for l := range h.looked {
		if l.waiting.Load() {
			l.conn.file.SetReadDeadline(time.Unix(1, 0)) // it sees that we drain
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

func (h *handBack) remove(l *look) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.looked, l)
}

// give hands a connection back, which it borrows, and tells whether the master has it now.
func (h *handBack) give(c *Conn) bool {
	back := [1]fdpass.Handoff{{Client: c.remote, Flags: c.flags &^ fdpass.FlagUnplaced, Details: c.details}}
	for range handBackTries {
		err := sock.Control(c.file, func(fd int) error {
			back[0].FD = fd
			return h.conn.TrySend(fdpass.TypeHandBack, back[:])
		})
		if !errors.Is(err, fdpass.ErrFull) {
			return err == nil
		}
		time.Sleep(handBackPause)
	}
	return false
}

// close ends it when the last connection is closed.
func (h *handBack) close() {
	if h != nil {
		h.conn.Close()
	}
}
