package nodeipc

import (
	"sync"
	"time"
)

const (
	// adapterSource marks the messages of @socket.io/cluster-adapter.
	adapterSource = "_sio_adapter"
	// maxUIDs is how many adapters a worker may announce: one for each Socket.IO namespace.
	// Beyond it those of before are forgotten; each is announced again by what it says next.
	maxUIDs = 4096
	// maxUID is the longest name of an adapter, in bytes. The module's have 16.
	maxUID = 128
	// missedDelay is the time from a message that a worker misses to the report of all that
	// it has missed since.
	missedDelay = 5 * time.Second
)

// relay passes messages from worker to worker, as Node's primary does for
// @socket.io/cluster-adapter after its setupPrimary(). An answer goes to the worker that has
// announced the adapter that asked, everything else to all other workers, also to those that
// drain. The bytes are the sender's.
//
// A worker takes part from its first message on. The adapter's first is its greeting; before
// it there is no adapter that others' messages concern. So programs that have none
// get none.
//
// Versions of the module number their kinds of messages differently, so we look at the addressee
// of a message (requesterUid) and not at its type.
type relay struct {
	mu     sync.Mutex
	links  map[*Link]int    // and how many adapters each has announced
	owners map[string]*Link // by the uid of an adapter
}

// pass sends a message on. It holds no lock of a link while it takes another's; a worker that does not
// read misses the message and holds up nobody.
func (r *relay) pass(from *Link, m *message, text []byte) {
	to := r.receivers(from, m)
	if len(to) == 0 {
		return
	}
	line := append(append(make([]byte, 0, len(text)+1), text...), '\n')
	for _, l := range to {
		l.postRelayed(line)
	}
}

// receivers notes what the message tells of its sender, and returns the links that it is for.
func (r *relay) receivers(from *Link, m *message) (to []*Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.announce(from, m.UID)
	if m.RequesterUID != "" {
		if owner := r.owners[m.RequesterUID]; owner != nil {
			to = append(to, owner)
		}
		return to
	}
	for l := range r.links {
		if l != from {
			to = append(to, l)
		}
	}
	return to
}

// announce notes a worker's adapter. An adapter belongs to the first worker that names it, so that no other can take its
// answers.
func (r *relay) announce(from *Link, uid string) {
	if r.links == nil {
		r.links, r.owners = make(map[*Link]int), make(map[string]*Link)
	}
	r.links[from] += 0
	if uid == "" || len(uid) > maxUID || r.owners[uid] != nil {
		return
	}
	if r.links[from] >= maxUIDs {
		r.forgetUIDs(from)
	}
	r.owners[uid] = from
	r.links[from]++
}

func (r *relay) forgetUIDs(l *Link) {
	if r.links[l] == 0 {
		return
	}
	for uid, owner := range r.owners {
		if owner == l {
			delete(r.owners, uid)
		}
	}
	r.links[l] = 0
}

// forget takes a worker out that neither sends nor reads any more.
func (r *relay) forget(l *Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetUIDs(l)
	delete(r.links, l)
}

// countMissed counts a message of another worker that is dropped.
func (l *Link) countMissed() {
	if l.missed++; l.missed == 1 {
		l.after(missedDelay, l.reportMissed)
	}
}

func (l *Link) reportMissed() {
	if l.missed > 0 {
		l.primary.log.Warn("worker does not read: messages of other workers were dropped, its clients miss them",
			"slot", l.slot, "dropped", l.missed, "limit_bytes", maxRelayed)
	}
	l.missed = 0
}
