package balancer

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
)

// waitlist is where connections are parked, or are being refused. It has room for a fixed number of them,
// and for fewer of one slot, and of one client.
type waitlist struct {
	mu        sync.Mutex
	room      int
	perClient int // 0: as many as there is room for
	parked    map[*parked]struct{}
	bySlot    map[int]int
	strangers int              // of those whose slot is not known yet
	byClient  map[hash.Key]int // only if perClient bounds them
	empty     *sync.Cond       // signalled when nothing is parked any more
}

// parked is a connection that waits. It belongs to one goroutine, which has its descriptor and
// changes it only within the gate of package reexec.
type parked struct {
	connection
	key     waitKey
	refused bool // it has its answer, and waits for the client to read it
}

// waitKey is what the quotas of a waitlist are counted by.
type waitKey struct {
	slot     int      // NoSlot: it is not known yet
	client   hash.Key // if the slot is known
	stranger bool     // the slot is not known yet, and the peer is no trusted proxy though others are
}

func newWaitlist(room, perClient int) *waitlist {
	l := &waitlist{room: room, perClient: perClient, parked: make(map[*parked]struct{}), bySlot: make(map[int]int), byClient: make(map[hash.Key]int)}
	l.empty = sync.NewCond(&l.mu)
	return l
}

// enter parks a connection under a key, of whose slot perSlot may be parked. The error is why there is
// no room. While slots are not known yet, strangers may have half of perSlot: peers that are slow to say whose
// connection it is must not take the room of trusted proxies, which may be slow, too.
func (l *waitlist) enter(c connection, key waitKey, perSlot int) (*parked, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.parked) >= l.room {
		return nil, errCrowded
	}
	if err := l.charge(key, perSlot); err != nil {
		return nil, err
	}
	p := &parked{connection: c, key: key}
	l.parked[p] = struct{}{}
	return p, nil
}

// rekey counts a connection under another key, of whose slot perSlot may be parked. If there is no
// room it stays where it is.
func (l *waitlist) rekey(p *parked, key waitKey, perSlot int) error {
	reexec.Lock.MustHold()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.charge(key, perSlot); err != nil {
		return err
	}
	l.refund(p.key)
	p.key = key
	return nil
}

// leave takes a connection off the list, within the gate of package reexec: its descriptor is somebody else's now, or closed.
func (l *waitlist) leave(p *parked) {
	reexec.Lock.MustHold()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refund(p.key)
	if delete(l.parked, p); len(l.parked) == 0 {
		l.empty.Broadcast()
	}
}

func (l *waitlist) charge(key waitKey, perSlot int) error {
	bounded := l.perClient > 0 && key.slot != NoSlot
	switch {
	case l.bySlot[key.slot] >= perSlot, key.stranger && l.strangers >= (perSlot+1)/2:
		return errCrowded
	case bounded && l.byClient[key.client] >= l.perClient:
		return errGreedy
	case bounded:
		l.byClient[key.client]++
	}
	if key.stranger {
		l.strangers++
	}
	l.bySlot[key.slot]++
	return nil
}

func (l *waitlist) refund(key waitKey) {
	if key.stranger {
		l.strangers--
	}
	if l.bySlot[key.slot]--; l.bySlot[key.slot] == 0 {
		delete(l.bySlot, key.slot)
	}
	if l.perClient > 0 && key.slot != NoSlot {
		if l.byClient[key.client]--; l.byClient[key.client] == 0 {
			delete(l.byClient, key.client)
		}
	}
}

func (l *waitlist) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.parked)
}

// all returns what is parked.
func (l *waitlist) all() []*parked {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.parked))
}

// countBySlot returns how many are parked, by slot.
func (l *waitlist) countBySlot() map[int]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.bySlot)
}

// waitUntilEmpty returns nil when nothing is parked, or the reason why ctx ended before.
func (l *waitlist) waitUntilEmpty(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.empty.Broadcast()
	})()
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.parked) > 0 && ctx.Err() == nil {
		l.empty.Wait()
	}
	if len(l.parked) > 0 {
		return context.Cause(ctx)
	}
	return nil
}
