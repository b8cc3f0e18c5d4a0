package kernelroute

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// A worker counts as having closed its listeners when it has had none open in closedLooks looks in a row,
// closedInterval apart: servers that read their configuration anew may close and open some.
const (
	closedLooks    = 3
	closedInterval = 200 * time.Millisecond
)

// listenerWatch is what looks have found out about a berth's worker and its listeners.
type listenerWatch struct {
	holder Holder // the process that had one open; nil: none had
	looks  int    // how many in a row have found none
	hidden *Lease // the worker's, if its processes must not be looked into
}

// lookForClosed returns the workers that have closed their listeners while clients wait there. Servers do so that
// have served as many requests as they were told to (uvicorn --limit-max-requests) and finish the last ones.
// Workers that know nothing of handfast do not say so otherwise.
func (r *Route) lookForClosed() (links []supervisor.Link) {
	if r.handsOff {
		return nil // their links say so
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
	found, err := r.machine.FindHolder(l.pid, listeners)
	b.watch.holder = found
	if errors.Is(err, fs.ErrPermission) {
		b.watch.hidden = l
	}
	if err != nil {
		return true
	}
	return found != nil && found.Holds()
}
