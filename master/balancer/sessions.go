package balancer

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/handfast/handfast/master/clientip"
)

// Sessions says which worker keeps which session: what workers say of theirs, by name, and what ids say, by the name of the
// worker. A request goes to the worker that keeps its session, in whatever slot its client belongs, also while that worker lingers or
// drains; if there is none any more, or not yet, it goes to the slot that an id names, or by its client.
type Sessions struct {
	any    atomic.Bool // there was one, or a worker that ids can name: from then on every connection is looked up
	ever   atomic.Bool // workers say which they keep: from then on every request line is looked at
	mu     sync.RWMutex
	owners map[clientip.Session]owner
	named  map[uint32]*namedWorker // by the start in its name
	names  map[Worker]*namedWorker

	toWorker, toSuccessor atomic.Uint64

	affinity *affinity // nil: clients go to their slots at once, also while their worker lingers
}

// owner is a worker, and the slot that what it is handed is counted for.
type owner struct {
	worker Worker // nil: nobody
	slot   int
}

// namedWorker is one that ids of sessions name.
type namedWorker struct {
	name     clientip.Name
	worker   Worker
	replaced atomic.Bool  // it is in no slot any more
	last     atomic.Int64 // when a request came back to it, in nanoseconds since 1970; 0: none has
}

// KeepClients has clients that were served lately, by their keys, go back to their worker while it lingers, as long as they come
// within that time. Call it before anything else.
func (s *Sessions) KeepClients(within time.Duration) { s.affinity = newAffinity(within) }

// Any tells whether any worker has ever claimed a session.
func (s *Sessions) Any() bool { return s.ever.Load() }

// Claim says that a worker, of a slot, keeps a session, and returns false if another one does: no session can
// be taken from its worker.
func (s *Sessions) Claim(id clientip.Session, w Worker, slot int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners == nil {
		s.owners = make(map[clientip.Session]owner)
	}
	if owner, taken := s.owners[id]; taken {
		return owner.worker == w
	}
	s.owners[id] = owner{w, slot}
	s.any.Store(true)
	s.ever.Store(true)
	return true
}

// Release says that a worker keeps a session no longer.
func (s *Sessions) Release(id clientip.Session, w Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners[id].worker == w {
		delete(s.owners, id)
	}
}

// Name says that ids of sessions may name a worker, until Unname.
func (s *Sessions) Name(name clientip.Name, w Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.named == nil {
		s.named, s.names = make(map[uint32]*namedWorker), make(map[Worker]*namedWorker)
	}
	named := &namedWorker{name: name, worker: w}
	s.named[name.Start], s.names[w] = named, named
	s.any.Store(true)
}

// Unname says that a worker is no more.
func (s *Sessions) Unname(name clientip.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if named := s.named[name.Start]; named != nil {
		delete(s.named, name.Start)
		delete(s.names, named.worker)
	}
}

// setReplaced says whether a worker is in no slot any more.
func (s *Sessions) setReplaced(w Worker, replaced bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if named := s.names[w]; named != nil {
		named.replaced.Store(replaced)
	}
}

// startOf returns the start in the name of a worker; 0: it has none.
func (s *Sessions) startOf(w Worker) (start uint32) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if named := s.names[w]; named != nil {
		start = named.name.Start
	}
	return start
}

// served notes that a slot's worker was handed a client's connection. It takes no lock of Sessions.
func (s *Sessions) served(c *connection, by seat) {
	if s.affinity != nil && by.start != 0 && !c.addressed {
		s.affinity.served(c.client.Key, by.start)
	}
}

// LastNamed returns when a request last came back to a worker that was named by its session, or that lingers; the zero time: none has.
func (s *Sessions) LastNamed(name clientip.Name) (last time.Time) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if w := s.named[name.Start]; w != nil && w.last.Load() != 0 {
		last = time.Unix(0, w.last.Load())
	}
	return last
}

// count counts a connection whose client is known now, if its session's id names a worker.
func (s *Sessions) count(c *connection) {
	if c.client.Name.Start == 0 || c.addressed {
		return
	}
	s.mu.RLock()
	named := s.named[c.client.Name.Start]
	s.mu.RUnlock()
	if named != nil {
		s.toWorker.Add(1)
	} else {
		s.toSuccessor.Add(1)
	}
}

// SessionCounts returns how many connections came by the id of a session that names a worker: one that is there, or was.
func (s *Sessions) SessionCounts() (toWorker, toSuccessor uint64) {
	return s.toWorker.Load(), s.toSuccessor.Load()
}

// RestoreSessionCounts goes on with the counts of the program before.
func (s *Sessions) RestoreSessionCounts(toWorker, toSuccessor uint64) {
	s.toWorker.Store(toWorker)
	s.toSuccessor.Store(toSuccessor)
}

// ownerOf returns the worker that keeps a connection's session, if there is one.
func (s *Sessions) ownerOf(c *connection) owner {
	byName := c.client.Name.Start != 0
	if c.addressed || !byName && c.client.Session == 0 && s.affinity == nil {
		return owner{}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if named := s.named[c.client.Name.Start]; named != nil {
		return named.comesBack()
	}
	if found := s.owners[c.client.Session]; found.worker != nil || byName || s.affinity == nil {
		return found
	}
	if named := s.named[s.affinity.servedBy(c.client.Key)]; named != nil && named.replaced.Load() {
		s.affinity.served(c.client.Key, named.name.Start)
		return named.comesBack()
	}
	return owner{}
}

func (w *namedWorker) comesBack() owner {
	w.last.Store(time.Now().UnixNano())
	return owner{w.worker, w.name.Slot}
}

// Owner returns the worker that has claimed a session, or nil.
func (s *Sessions) Owner(id clientip.Session) Worker {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.owners[id].worker
}
