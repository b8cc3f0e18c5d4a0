package balancer

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/handfast/handfast/hash"
)

// lot is where connections are parked, or are being refused. It has room for a fixed number of them,
// and for fewer of one slot, and of one client.
type lot struct {
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
// changes it only while it holds reexec.Lock for reading.
type parked struct {
	arrival
	at      place
	refused bool // it has its answer, and waits for the client to read it
}

// place is one in the lot.
type place struct {
	slot     int      // NoSlot: it is not known yet
	client   hash.Key // whom the connection is from, if the slot is known
	stranger bool     // the slot is not known yet, and the peer is no trusted proxy though others are
}

func newLot(room, perClient int) *lot {
	l := &lot{room: room, perClient: perClient, parked: make(map[*parked]struct{}), bySlot: make(map[int]int), byClient: make(map[hash.Key]int)}
	l.empty = sync.NewCond(&l.mu)
	return l
}

// enter parks a connection at a place of whose slot share may be there. The error is why there is
// no room. While slots are not known yet, strangers may have half of the share: who is slow to say who it
// is must not take the places of trusted proxies, which may be slow, too.
func (l *lot) enter(a arrival, at place, share int) (*parked, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.parked) >= l.room {
		return nil, errCrowded
	}
	if err := l.note(at, share); err != nil {
		return nil, err
	}
	p := &parked{arrival: a, at: at}
	l.parked[p] = struct{}{}
	return p, nil
}

// move gives a connection another place, of whose slot share may be there.
func (l *lot) move(p *parked, to place, share int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.note(to, share); err != nil {
		return err
	}
	l.forget(p.at)
	p.at = to
	return nil
}

func (l *lot) note(p place, share int) error {
	bounded := l.perClient > 0 && p.slot != NoSlot
	switch {
	case l.bySlot[p.slot] >= share, p.stranger && l.strangers >= (share+1)/2:
		return errCrowded
	case bounded && l.byClient[p.client] >= l.perClient:
		return errGreedy
	case bounded:
		l.byClient[p.client]++
	}
	if p.stranger {
		l.strangers++
	}
	l.bySlot[p.slot]++
	return nil
}

func (l *lot) forget(p place) {
	if p.stranger {
		l.strangers--
	}
	if l.bySlot[p.slot]--; l.bySlot[p.slot] == 0 {
		delete(l.bySlot, p.slot)
	}
	if l.perClient > 0 && p.slot != NoSlot {
		if l.byClient[p.client]--; l.byClient[p.client] == 0 {
			delete(l.byClient, p.client)
		}
	}
}

// leave gives up the place of a connection whose descriptor is somebody else's now, or closed.
func (l *lot) leave(p *parked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(p.at)
	if delete(l.parked, p); len(l.parked) == 0 {
		l.empty.Broadcast()
	}
}

func (l *lot) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.parked)
}

// all returns what is parked.
func (l *lot) all() []*parked {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.parked))
}

// counts returns how many are there, by slot.
func (l *lot) counts() map[int]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.bySlot)
}

// wait returns nil when nothing is parked, or the reason why ctx ended before.
func (l *lot) wait(ctx context.Context) error {
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
