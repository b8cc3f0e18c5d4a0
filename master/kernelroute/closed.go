package kernelroute

import (
	"time"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/pgroup"
	"github.com/handfast/handfast/master/supervisor"
)

// A worker has to have no listener open in closedLooks looks in a row, closedInterval apart, before it
// counts as having closed them: servers that read their configuration anew may close and open some.
const (
	closedLooks    = 3
	closedInterval = 200 * time.Millisecond
)

// listenerWatch is what looks have found out about the listeners of a berth's worker.
type listenerWatch struct {
	holder listening.Holder // of its processes, that had one open
	looks  int              // in a row, in which none had
	hidden *Lease           // of the worker, if its processes must not be looked into
}

// lookForClosed returns the workers that have closed their listeners while clients wait there, as
// servers do that have served as many requests as they were told to (uvicorn --limit-max-requests)
// and finish the last ones. Nobody else tells us of those that know nothing of us.
func (r *Route) lookForClosed() (links []supervisor.Link) {
	if r.handsOff {
		return nil // others say so
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for slot, b := range r.berthOf {
		link := r.filled[slot]
		if link == nil || r.queued(b) == 0 || r.holdsListener(b, link) {
			b.watch.looks = 0
			continue
		}
		if b.watch.looks++; b.watch.looks == closedLooks {
			links = append(links, link)
		}
	}
	return links
}

// holdsListener tells whether a process of a berth's worker has one of the berth's listeners open, or may
// have, as far as can be seen.
func (r *Route) holdsListener(b *berth, link supervisor.Link) bool {
	l := r.leaseOf(link, 0)
	if l == nil || l.pid == 0 || l == b.watch.hidden || b.watch.holder.Holds() {
		return true
	}
	var sockets []uint64
	for _, g := range r.groups {
		inode, err := sock.Inode(g.Listener(b.number))
		if err != nil {
			return true
		}
		sockets = append(sockets, inode)
	}
	holder, err := listening.FindHolder(append([]int{l.pid}, pgroup.Living(l.pid)...), sockets)
	if err == nil && !holder.Holds() { // a daemon may have left family and group
		holder, _ = listening.FindHolder(pgroup.All(), sockets) // of other users it is not
	}
	if b.watch.holder = holder; err != nil {
		b.watch.hidden = l
	}
	return err != nil || holder.Holds()
}
