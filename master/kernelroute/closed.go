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

// closed is what looks have found out about the listeners of a berth's worker.
type closed struct {
	holder listening.Holder // of its processes, that had one open
	looks  int              // in a row, in which none had
	hidden *Lease           // of the worker, if its processes must not be looked into
}

// lookForClosed returns the workers that have closed their listeners while clients wait there, as
// servers do that have served as many requests as they were told to (uvicorn --limit-max-requests)
// and finish the last ones. Nobody else tells us of those that know nothing of us.
func (s *Route) lookForClosed() (links []supervisor.Link) {
	if s.handsOff {
		return nil // others say so
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for slot, b := range s.at {
		link := s.filled[slot]
		if link == nil || s.queued(b) == 0 || s.holdsListener(b, link) {
			b.closed.looks = 0
			continue
		}
		if b.closed.looks++; b.closed.looks == closedLooks {
			links = append(links, link)
		}
	}
	return links
}

// holdsListener tells whether a process of a berth's worker has one of the berth's listeners open, or may
// have, as far as can be seen.
func (s *Route) holdsListener(b *berth, link supervisor.Link) bool {
	l := s.leaseOf(link, 0)
	if l == nil || l.pid == 0 || l == b.closed.hidden || b.closed.holder.Holds() {
		return true
	}
	var sockets []uint64
	for _, g := range s.groups {
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
	if b.closed.holder = holder; err != nil {
		b.closed.hidden = l
	}
	return err != nil || holder.Holds()
}
