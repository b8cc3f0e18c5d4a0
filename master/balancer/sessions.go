package balancer

import (
	"sync"
	"sync/atomic"

	"github.com/handfast/handfast/master/clientip"
)

// Sessions says which worker keeps which session. A request that names one goes to that
// worker, in whatever slot its client belongs, also while the worker drains; when it is
// not known any more, or not yet, it goes by its client.
type Sessions struct {
	ever   atomic.Bool // there was one: from then on every request is looked at
	mu     sync.RWMutex
	owners map[clientip.Session]Worker
}

// Any tells whether any worker has ever claimed a session.
func (s *Sessions) Any() bool { return s.ever.Load() }

// Claim says that a worker keeps a session, and returns false if another one does: no session can
// be taken from its worker.
func (s *Sessions) Claim(id clientip.Session, w Worker) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners == nil {
		s.owners = make(map[clientip.Session]Worker)
	}
	if owner, taken := s.owners[id]; taken {
		return owner == w
	}
	s.owners[id] = w
	s.ever.Store(true)
	return true
}

// Release says that a worker keeps a session no longer.
func (s *Sessions) Release(id clientip.Session, w Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners[id] == w {
		delete(s.owners, id)
	}
}

// ownerOf returns the worker that keeps a connection's session, or nil.
func (s *Sessions) ownerOf(c *connection) Worker {
	if c.addressed {
		return nil
	}
	return s.Owner(c.client.Session)
}

// Owner returns the worker that keeps a session, or nil.
func (s *Sessions) Owner(id clientip.Session) Worker {
	if id == 0 {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.owners[id]
}
