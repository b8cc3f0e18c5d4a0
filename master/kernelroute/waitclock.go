package kernelroute

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/handfast/handfast/master/sockdiag"
)

const (
	// clockLook is the shortest time between two looks at the queues.
	clockLook = 50 * time.Millisecond
	// clockMemory is how long a look is remembered. If the next one is later, all connections are new to it.
	clockMemory = 10 * time.Second
)

// waitClock knows how long connections have waited that nobody has accepted. The queue of a listener
// tells only how many there are, and if others accept from it, too, not even how many have come.
// But the kernel lists the connections, and shows which of them nobody has accepted (package sockdiag).
// So the clock looks again and again, while there is somebody to look for, and notes when it has seen
// each for the first time.
type waitClock struct {
	slotOf func(local, client netip.Addr) int
	list   func(port uint16, states ...sockdiag.State) ([]sockdiag.Socket, error)

	mu    sync.Mutex
	ports map[int]*waiters
}

// waiters are the connections to a port that nobody has accepted.
type waiters struct {
	looked time.Time
	known  map[waiterKey]waiter
}

// waiterKey tells connections apart.
type waiterKey struct {
	cookie        uint64
	local, remote netip.AddrPort
}

type waiter struct {
	sockdiag.Socket
	since time.Time
	slot  int // where it belonged then
}

func newWaitClock(slotOf func(local, client netip.Addr) int) *waitClock {
	return &waitClock{slotOf: slotOf, list: sockdiag.List, ports: make(map[int]*waiters)}
}

// overdue returns how many connections have waited at an address for a slot for as long as patience, as far as the
// clock has looked. Call it every now and then while somebody may wait there. Where nothing can be
// seen, nobody is overdue.
func (c *waitClock) overdue(at *net.TCPAddr, slot int, patience time.Duration) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.ports[at.Port]
	if w == nil || time.Since(w.looked) > clockMemory {
		w = &waiters{known: make(map[waiterKey]waiter)}
		c.ports[at.Port] = w
	}
	if time.Since(w.looked) < clockLook && w.overdue(at, slot, patience) == 0 {
		return 0
	}
	all, err := c.list(uint16(at.Port), sockdiag.Established, sockdiag.CloseWait)
	if err != nil {
		return 0
	}
	w.note(all, time.Now(), c.slotOf)
	return w.overdue(at, slot, patience)
}

func (w *waiters) overdue(at *net.TCPAddr, slot int, patience time.Duration) (n int) {
	listener := at.AddrPort().Addr()
	for _, k := range w.known {
		if k.slot == slot && time.Since(k.since) >= patience && k.ComesTo(listener) {
			n++
		}
	}
	return n
}

// note brings the waiters up to date.
func (w *waiters) note(all []sockdiag.Socket, now time.Time, slotOf func(local, client netip.Addr) int) {
	known := make(map[waiterKey]waiter)
	for _, s := range all {
		if s.Accepted() {
			continue
		}
		key := waiterKey{s.Cookie, s.Local, s.Remote}
		k, ok := w.known[key]
		if !ok {
			k = waiter{s, now, slotOf(s.Local.Addr(), s.Remote.Addr())}
		}
		known[key] = k
	}
	w.looked, w.known = now, known
}
