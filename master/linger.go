package master

import (
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// A worker that was replaced lingers while clients come back to it. Where it hands connections back, each of their requests is placed by us, or
// reported. Of other workers we see only that a connection has come; so their open connections are watched.

const (
	// watchesIn is how often, while a worker may be idle for as long as it lingers, it is looked at.
	watchesIn = 4
	// watchSoon and watchLate bound the time between two looks: each costs a walk over the kernel's table of sockets.
	watchSoon = 100 * time.Millisecond
	watchLate = 15 * time.Second
)

// seesRequests tells whether we hear of each request that comes back to a worker.
func (c *Config) seesRequests() bool {
	byProxyHeader := c.Link == LinkNode && c.Balancer.Clients.ProxyProtocol // Node would lose what it said
	return c.Link.HandsBack() && !c.NoHandBack && !byProxyHeader && c.DrainAffinity == 0
}

// lastCall returns when a request came back to a worker last, or when it was replaced, if that is later; after an upgrade, when nobody
// knows whether one has, not before that. A worker without a name drains at once.
func (n *names) lastCall(link supervisor.Link, replaced time.Time) time.Time {
	l := known(link)
	if l.named == nil {
		return time.Time{}
	}
	if n.heard != nil && n.lingers > 0 {
		l.named.watched.Do(func() { go n.watch(l) })
	}
	last := replaced
	seen := []time.Time{n.since, n.table.LastNamed(l.named.name)}
	if l.reports != nil {
		seen = append(seen, l.reports.LastNamed()) // on connections that it has: the table does not hear of them
	}
	if at := l.named.heard.Load(); at != 0 {
		seen = append(seen, time.Unix(0, at))
	}
	for _, t := range seen {
		if t.After(last) {
			last = t
		}
	}
	return last
}

// watch notes when clients of a worker send something, until its link is closed.
func (n *names) watch(l *workerLink) {
	every := time.NewTicker(min(max(n.lingers/watchesIn, watchSoon), watchLate))
	defer every.Stop()
	lately := min(n.lingers/watchesIn, watchLate) + watchSoon
	for {
		if heard, err := n.heard(l.named.pid, lately); err == nil && heard {
			l.named.heard.Store(time.Now().UnixNano())
		}
		select {
		case <-every.C:
		case <-l.named.closed:
			return
		}
	}
}
