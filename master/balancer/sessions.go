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
	named  map[clientip.Name]*namedWorker
}

// owner is a worker, and the slot that what it is handed is counted for.
type owner struct {
	worker Worker // nil: nobody
	slot   int
}

// namedWorker is one that ids of sessions name.
type namedWorker struct {
	worker Worker
	last   atomic.Int64 // when a request named it, in nanoseconds since 1970; 0: none has
}

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
		s.named = make(map[clientip.Name]*namedWorker)
	}
	s.named[name] = &namedWorker{worker: w}
	s.any.Store(true)
}

// Unname says that a worker is no more.
func (s *Sessions) Unname(name clientip.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.named, name)
}

// LastNamed returns when a request named a worker last; the zero time: none has.
func (s *Sessions) LastNamed(name clientip.Name) (last time.Time) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if w := s.named[name]; w != nil && w.last.Load() != 0 {
		last = time.Unix(0, w.last.Load())
	}
	return last
}

// ownerOf returns the worker that keeps a connection's session, if there is one.
func (s *Sessions) ownerOf(c *connection) owner {
	if c.addressed || c.client.Name == (clientip.Name{}) && c.client.Session == 0 {
		return owner{}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if named := s.named[c.client.Name]; named != nil {
		named.last.Store(time.Now().UnixNano())
		return owner{named.worker, c.client.Name.Slot}
	}
	if c.client.Session == 0 {
		return owner{}
	}
	return s.owners[c.client.Session]
}

// Owner returns the worker that has claimed a session, or nil.
func (s *Sessions) Owner(id clientip.Session) Worker {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.owners[id].worker
}
