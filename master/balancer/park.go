package balancer

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/reexec"
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

// nowhere is the place of a connection whose client is not known yet.
func (b *Balancer) nowhere(a *arrival) place {
	return place{slot: NoSlot, stranger: b.clients.IsStranger(&a.Handoff)}
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

// park takes ownership of a connection that cannot be delivered now. Like whatever takes a
// connection over it is called with reexec.Lock held for reading.
func (b *Balancer) park(a arrival) { b.enterLot(a, b.awaitSlot) }

// enter is lot.enter for a connection that begins to wait.
func (b *Balancer) enter(a arrival, at place, share int) (*parked, error) {
	if a.parked.IsZero() {
		a.parked = time.Now()
	}
	return b.lot.enter(a, at, share)
}

// enterLot takes ownership of a connection, which waits in its slot's part of the lot while life
// lasts, in a goroutine, if there is room.
func (b *Balancer) enterLot(a arrival, life func(*parked)) {
	slots := b.table.Len()
	at := place{slot: b.cfg.Strategy.Slot(a.client, slots, 0), client: a.client.Key}
	p, err := b.enter(a, at, b.share(slots))
	if err != nil {
		b.turnAway(a, at.slot, err)
		return
	}
	go life(p)
}

// turnAway takes ownership of a connection that cannot even be parked.
func (b *Balancer) turnAway(a arrival, slot int, why error) {
	if p, err := b.overflow.enter(a, place{slot: slot}, maxOverflow); err == nil {
		go b.refuse(p, b.overflow, nil, slot, why)
		return
	}
	// Not even room to refuse politely: answer, but do not wait until the client has
	// read it.
	b.sayWhy(a.FD, a, slot, why)
	fdpass.CloseConnections(a.FD)
}

// share is how many connections of one slot may be parked: when there are others,
// half of what there is room for, so that one stalled worker cannot use it up.
func (b *Balancer) share(slots int) int {
	if slots == 1 {
		return b.lot.room
	}
	return b.half()
}

// half is half of the room and of the open files.
func (b *Balancer) half() int {
	return (min(b.lot.room, fdlimit.Limit()-2*fdlimit.Spare) + 1) / 2
}

// awaitSlot is the life of a parked connection whose client is known: it is delivered, or refused
// when its patience is over.
func (b *Balancer) awaitSlot(p *parked) {
	if err := b.waitForSlot(p); err != nil {
		b.giveUp(p, err)
	}
}

// giveUp sends a parked connection elsewhere, if that is wanted, or refuses it.
func (b *Balancer) giveUp(p *parked, why error) {
	if why == fdpass.ErrLimit || b.cfg.WhenDown != Next || !b.offerToOthers(p) {
		b.refuse(p, b.lot, nil, p.at.slot, why)
	}
}

// waitForSlot offers a connection to its slot until the worker there takes it:
// whenever the slot gets another worker, and after each retry delay. The error is
// why the last try failed. A worker that has as many connections as it may is waited for
// only until it would have said that it has room.
func (b *Balancer) waitForSlot(p *parked) error {
	retry := time.NewTicker(b.cfg.RetryDelay)
	defer retry.Stop()
	var reported <-chan time.Time // nil: the worker was never without room
	current := false              // what it has reported is
	for tries := 0; ; {
		changed, err := b.offer(p, 0)
		limited := err == fdpass.ErrLimit
		if err == nil || limited && current || tries >= b.cfg.MaxRetries {
			return err
		}
		if limited && reported == nil {
			reported = time.After(reportTime)
		}
		select {
		case <-changed:
		case <-reported:
			current = true
		case <-retry.C:
			tries++
		case <-b.hurry.Done():
			return err
		}
	}
}

// reportTime is within how long a worker that may have so many connections reports those that it
// has closed (package fdpass: 10 ms), with something to spare.
const reportTime = 20 * time.Millisecond

// offerToOthers offers a connection to all other slots, in the client's order.
func (b *Balancer) offerToOthers(p *parked) bool {
	for rank := 1; rank < b.table.Len(); rank++ {
		if _, err := b.offer(p, rank); err == nil {
			return true
		}
	}
	return false
}

// offer tries to deliver one connection to the worker that keeps its session, and for want
// of one to its slot of the given rank; it has left the lot then. When that fails, changed is
// closed as soon as the slot gets another worker.
func (b *Balancer) offer(p *parked, rank int) (changed <-chan struct{}, err error) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	changed, err = b.tryOffer(&p.arrival, rank)
	if err == nil {
		b.lot.leave(p)
	}
	return changed, err
}

// tryOffer is offer for who holds the lock, and it does not touch the lot.
func (b *Balancer) tryOffer(a *arrival, rank int) (changed <-chan struct{}, err error) {
	seats := b.table.load()
	slot := b.cfg.Strategy.Slot(a.client, len(seats), min(rank, len(seats)-1))
	seat := seats[slot]
	if owner := b.table.Owner(a.client.Session); owner != nil && rank == 0 {
		if err := b.offerTo(owner, slotOf(owner), a); err != fdpass.ErrClosed {
			return seat.changed, err
		}
	}
	if seat.worker == nil {
		return seat.changed, errEmpty
	}
	return seat.changed, b.offerTo(seat.worker, slot, a)
}

func (b *Balancer) offerTo(w Worker, slot int, a *arrival) error {
	_, err := b.deliver(w, b.table.counts(slot), []fdpass.Handoff{a.Handoff})
	if err == nil {
		b.tell(a, slot, w, nil)
	}
	return err
}
