package kernelroute

import (
	"maps"
	"slices"

	"github.com/handfast/handfast/master/sockdiag"
)

// queueWatch knows whether connections are taken from a berth's listeners, whatever the program: by the kernel's figures. The length of
// a queue does not tell that alone. It is as long as before also if one connection was taken and another has come, and a busy server's
// is always full. So a look also lists the connections that nobody has accepted.
type queueWatch struct {
	asked bool       // a look is to be made
	last  *queueLook // the latest; nil: nothing waited then
	found found      // what it has found out; of one that was told already: notLooked
}

// found is what a look has found out.
type found int

const (
	notLooked found = iota
	foundTaken
	foundStalled // something has waited since the look before, and nobody has taken anything
)

// queueLook is one look at a berth's queues.
type queueLook struct {
	before, after int                    // how many connections were queued, just before the others were listed and just after
	waiting       map[waiterKey]struct{} // those that nobody has accepted; nil: the slot's clients come to another berth
}

// taken tells whether somebody has surely taken a connection since the look before. In accepted are connections that
// somebody has.
func (l *queueLook) taken(before *queueLook, accepted map[waiterKey]struct{}) bool {
	came := 0 // at least so many, all of them after before.before was read, and before l.after was
	for key := range l.waiting {
		if _, known := before.waiting[key]; !known && before.waiting != nil {
			came++
		}
	}
	if before.before+came > l.after {
		return true
	}
	for key := range before.waiting {
		if _, ok := accepted[key]; ok {
			return true
		}
	}
	return false
}

// Takes tells whether somebody takes connections from the worker's listeners, or nothing waits there: what has been found out since the
// last time, for which it then asks again (lookAtQueues). It waits for no look, and is true if there was none.
func (l *Lease) Takes() bool {
	if l == nil {
		return true
	}
	r, q := l.route, &l.berth.queue
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.queued(l.berth) == 0 {
		*q = queueWatch{}
		return true
	}
	result := q.found
	q.found, q.asked = notLooked, true
	select {
	case r.queuesAsked <- struct{}{}:
	default: // it has not looked yet
	}
	return result != foundStalled
}

// lookAtQueues makes the looks that were asked for.
func (r *Route) lookAtQueues() {
	looks, ports := r.beginLooks()
	waiting, accepted := make(map[int]map[waiterKey]struct{}), make(map[waiterKey]struct{})
	for _, port := range ports {
		all, err := r.clock.list(port, sockdiag.Established, sockdiag.CloseWait)
		if err != nil {
			return // nobody can see: no worker is hung by that
		}
		for _, s := range all {
			key := waiterKey{s.Cookie, s.Local, s.Remote}
			if s.Accepted() {
				accepted[key] = struct{}{}
				continue
			}
			slot := r.slotOf(s.Local.Addr(), s.Remote.Addr())
			if waiting[slot] == nil {
				waiting[slot] = make(map[waiterKey]struct{})
			}
			waiting[slot][key] = struct{}{}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for b, look := range looks {
		look.after = r.queued(b)
		if slot := slices.Index(r.berthOf, b); slot >= 0 {
			look.waiting = waiting[slot]
		}
		q := &b.queue
		switch {
		case q.last == nil || look.taken(q.last, accepted):
			q.found = foundTaken
		default:
			q.found = foundStalled
		}
		q.last = look
	}
}

// beginLooks returns what was asked for, and our ports.
func (r *Route) beginLooks() (looks map[*berth]*queueLook, ports []uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	looks = make(map[*berth]*queueLook)
	for _, b := range r.berths {
		if b.queue.asked {
			b.queue.asked = false
			looks[b] = &queueLook{before: r.queued(b)}
		}
	}
	all := make(map[uint16]struct{})
	for _, g := range r.groups {
		all[uint16(g.Bound().Port)] = struct{}{}
	}
	return looks, slices.Collect(maps.Keys(all))
}
