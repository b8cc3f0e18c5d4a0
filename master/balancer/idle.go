package balancer

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// idlers are connections that workers have handed back between two requests, and on which not a byte of the next one is
// there. Their clients are not slow: they keep a connection for later. So there is room for them beside the waitlist, and
// when it is full, those that are idle longest go.
//
// One timer is for all, since each may stay as long as the others, and one watcher, from the first connection to close.
type idlers struct {
	timeout time.Duration
	room    func() int // for how many
	watch   func(come func(ids []uint64)) (watcher, error)
	leave   func([]connection) // takes ownership of those on which something has come, or that have to go, within the gate of package reexec

	mu      sync.Mutex
	byAge   list.List                // of idler; the one that is idle longest is the first
	byID    map[uint64]*list.Element // and under a number of its own, since those of descriptors come again
	lastID  uint64
	timer   *time.Timer // until the time of the first one is over; nil: there is none
	watcher watcher     // nil: there was no connection yet
	closed  bool
}

// watcher tells of connections on which something has come, each under its number.
type watcher interface {
	add(fd int, id uint64) error // borrows the descriptor until remove
	remove(fd int)
	close() // when it returns, it tells nothing more
}

// idler is one of them. Its descriptor is the list's.
type idler struct {
	connection
	id    uint64
	since time.Time
}

func newIdlers(timeout time.Duration, room func() int, leave func([]connection)) *idlers {
	return &idlers{timeout: timeout, room: room, watch: watch, leave: leave, byID: make(map[uint64]*list.Element)}
}

// enter takes ownership of a connection, or of none if it returns false: there is no room at all, or it was closed.
func (l *idlers) enter(c connection) bool {
	reexec.Lock.MustHold()
	room := l.room()
	l.mu.Lock()
	if l.closed || room < 1 || !l.add(c.FD) {
		l.mu.Unlock()
		return false
	}
	oldest := l.take(l.byAge.Len() + 1 - room)
	l.byID[l.lastID] = l.byAge.PushBack(idler{connection: c, id: l.lastID, since: time.Now()})
	if l.timer == nil {
		l.timer = time.AfterFunc(l.timeout, l.expire)
	}
	l.mu.Unlock()
	l.leave(oldest)
	return true
}

// add has a connection be watched under the next number. It may fail for want of memory or of descriptors.
func (l *idlers) add(fd int) bool {
	var err error
	if l.watcher == nil {
		if l.watcher, err = l.watch(l.come); err != nil {
			return false
		}
	}
	l.lastID++
	return l.watcher.add(fd, l.lastID) == nil
}

// shed ends the n connections that are idle longest, within the gate of package reexec.
func (l *idlers) shed(n int) {
	l.mu.Lock()
	oldest := l.take(n)
	l.mu.Unlock()
	l.leave(oldest)
}

// expire ends those whose time is over.
func (l *idlers) expire() {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	l.mu.Lock()
	due := 0
	l.timer = nil
	for e := l.byAge.Front(); e != nil; e = e.Next() {
		if left := l.timeout - time.Since(e.Value.(idler).since); left > 0 {
			l.timer = time.AfterFunc(left, l.expire)
			break
		}
		due++
	}
	over := l.take(due)
	l.mu.Unlock()
	l.leave(over)
}

// take takes the n first connections out.
func (l *idlers) take(n int) (taken []connection) {
	for ; n > 0 && l.byAge.Len() > 0; n-- {
		taken = append(taken, l.remove(l.byAge.Front()))
	}
	return taken
}

// remove takes a connection out.
func (l *idlers) remove(e *list.Element) connection {
	i := l.byAge.Remove(e).(idler)
	delete(l.byID, i.id)
	l.watcher.remove(i.FD)
	return i.connection
}

// come has connections leave on which something has come, by their numbers.
func (l *idlers) come(ids []uint64) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	var come []connection
	l.mu.Lock()
	for _, id := range ids {
		if e, ok := l.byID[id]; ok {
			come = append(come, l.remove(e))
		}
	}
	l.mu.Unlock()
	l.leave(come)
}

// close ends all, and has none enter any more.
func (l *idlers) close() {
	reexec.Lock.RLock()
	l.mu.Lock()
	l.closed = true
	all := l.take(l.byAge.Len())
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.leave(all)
	reexec.Lock.RUnlock()
	if l.watcher != nil {
		l.watcher.close()
	}
}

func (l *idlers) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byAge.Len()
}

// all returns what is idle, longest first.
func (l *idlers) all() (all []idler) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.byAge.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(idler))
	}
	return all
}

// leaveIdle takes ownership of connections that are idle no longer: those on which bytes have come are placed as if they had just
// come, with the header timeout to go; the others have been ended by their clients, or are ended now, as any server does between two
// requests.
func (b *Balancer) leaveIdle(conns []connection) {
	if len(conns) == 0 {
		return
	}
	reexec.Lock.MustHold()
	r := b.returns.Get().(*returns)
	defer b.returns.Put(r)
	r.batch = r.batch[:0]
	for _, c := range conns {
		var first [1]byte
		if n, _, _ := unix.Recvfrom(c.FD, first[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); n > 0 {
			r.batch = append(r.batch, c)
			continue
		}
		b.ledger.isGone(&c)
		fdpass.CloseConnections(c.FD)
	}
	r.router.route(b.identify(r.batch, r.peek))
	clear(r.batch)
}

// keepIdle takes ownership of a connection between two requests.
func (b *Balancer) keepIdle(c connection) {
	if !b.idlers.enter(c) {
		b.ledger.isGone(&c)
		fdpass.CloseConnections(c.FD)
	}
}
