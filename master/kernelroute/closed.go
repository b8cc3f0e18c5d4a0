package kernelroute

import (
	"os"
	"time"

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
	holder holder // of its processes, that had one open; nil: none had
	looks  int    // in a row, in which none had
	hidden *Lease // of the worker, if its processes must not be looked into
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
	if l == nil || l.pid == 0 || l == b.watch.hidden || b.watch.holder != nil && b.watch.holder.Holds() {
		return true
	}
	var listeners []*os.File
	for _, g := range r.groups {
		listeners = append(listeners, g.Listener(b.number))
	}
	found, err := r.machine.findHolder(l.pid, listeners)
	if b.watch.holder = found; err != nil {
		b.watch.hidden = l
		return true
	}
	return found != nil && found.Holds()
}
