package mailbox

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handfast/handfast/fdpass"
)

// slotsDelay is the time between two tries to tell a worker that does not keep up how many slots there are.
const slotsDelay = 100 * time.Millisecond

// Slots tells workers how many slots there are: those that hand connections back place clients themselves to see which
// belong elsewhere. The zero Slots tells them 0: nothing is to be handed back.
type Slots struct {
	Passes bool // workers pass connections to each other that the master need not know of

	mu    sync.Mutex
	n     int
	boxes map[*Mailbox]struct{}        // of workers that want to know
	seats [fdpass.MaxPassages]*Mailbox // of those in the slots, that have passages
	given atomic.Int64                 // connections that were handed off to all of them, if they may pass them on
}

// Set says how many there are now, or 0. It does not wait.
func (s *Slots) Set(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n = n
	if n > 0 && n < len(s.seats) {
		clear(s.seats[n:])
	}
	for m := range s.boxes {
		m.unsaid = true
		s.tell(m)
	}
}

// SetReplaced says whether another worker has taken a worker's slot over. It does not wait.
func (s *Slots) SetReplaced(m *Mailbox, replaced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.replaced == replaced {
		return
	}
	m.replaced, m.unsaid = replaced, true
	s.tell(m)
}

func (s *Slots) add(m *Mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boxes == nil {
		s.boxes = make(map[*Mailbox]struct{})
	}
	s.boxes[m], m.unsaid = struct{}{}, true
	s.tell(m)
}

func (s *Slots) remove(m *Mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.boxes, m)
}

// tell tells one worker what it does not know yet, if it wants to, or does so later if it does not keep up. The caller holds s.mu.
func (s *Slots) tell(m *Mailbox) {
	if _, wants := s.boxes[m]; !wants {
		return
	}
	var err error
	if m.unsaid {
		n := s.n
		if m.rulesChanged {
			n = 0
		}
		err = m.ours.TrySendSlots(n, m.replaced)
		m.unsaid = err != nil
	}
	if err == nil {
		err = s.tellPassages(m)
	}
	if errors.Is(err, fdpass.ErrFull) {
		time.AfterFunc(slotsDelay, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.tell(m)
		})
	}
}

// beginHandBack has a worker that hands connections back know what it needs for that.
func (m *Mailbox) beginHandBack() {
	if m.handsBack {
		m.ours.SendDetails()
		m.requests.Slots.add(m)
	}
}

// Looks tells whether the worker hands connections back whose next request belongs to another slot, also the first request of a
// connection with fdpass.FlagUnplaced. It is not known before it is ready.
func (m *Mailbox) Looks() bool { return m.isKnown() && m.handsBack }

// Drains tells whether the worker is handed nothing more.
func (m *Mailbox) Drains() bool { return m.drained.Load() }

// handleHandBack handles connections that are handed back, or, before ready, the word that there may be some.
func (m *Mailbox) handleHandBack(hs []fdpass.Handoff) error {
	n := int64(len(hs))
	switch {
	case n == 0:
		m.offersBack = true
		return nil
	case !m.Looks():
		m.ours.Discard(hs)
		return fmt.Errorf("%w: a hand back of a worker that has not said that it does that, or is not ready", fdpass.ErrMalformed)
	case m.has.Add(-n)+m.requests.Slots.given.Load() < 0:
		m.ours.Discard(hs)
		return fmt.Errorf("%w: more connections are handed back than were handed off", fdpass.ErrMalformed)
	}
	taken, err := m.requests.HandBack(m, true, hs)
	m.ours.Discard(hs[taken:])
	return err
}
