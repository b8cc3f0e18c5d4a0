package mailbox

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// passage is what workers of other slots pass connections through to a worker. The mailbox owns both ends: workers have copies, and from the
// exit it takes what a dead worker did not receive. All fields are under the lock of Slots.
type passage struct {
	there          bool
	entrance, exit int
	told           bool   // its worker was sent the exit
	untold         uint64 // slots whose workers' entrances that worker has not been sent
}

// Seat says that a worker is in a slot from now on, and has the workers of all slots pass connections to each other. It does not wait.
func (s *Slots) Seat(slot int, m *Mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot >= len(s.seats) {
		return
	}
	before := s.seats[slot]
	if !m.mayPass() || m.passage.open() != nil { // for want of descriptors: what is its own comes from the master, as ever
		m = nil
	}
	if s.seats[slot] = m; m == nil || m == before {
		return
	}
	for at, other := range s.seats {
		if other != nil && other != m {
			other.passage.untold |= 1 << slot
			m.passage.untold |= 1 << at
			s.tell(other)
		}
	}
	s.tell(m)
}

// unseat says that a worker is in no slot any more. The caller holds s.mu.
func (s *Slots) unseat(m *Mailbox) {
	for at := range s.seats {
		if s.seats[at] == m {
			s.seats[at] = nil
		}
	}
}

// tellPassages has a worker know its own passage, and those of others that are new. The caller holds s.mu.
func (s *Slots) tellPassages(m *Mailbox) error {
	var ends []fdpass.Handoff
	told := m.passage.told
	for at, other := range s.seats {
		switch {
		case other == nil:
		case other == m && !told:
			told = true
			ends = append(ends, fdpass.PassageEnd(at, m.passage.exit))
		case other != m && m.passage.untold&(1<<at) != 0:
			ends = append(ends, fdpass.PassageEnd(at, other.passage.entrance))
		}
	}
	if len(ends) == 0 {
		return nil
	}
	err := m.ours.TrySend(fdpass.TypePass, ends)
	if err == nil {
		m.passage.told, m.passage.untold = told, 0
	}
	return err
}

// open makes one unless there is one.
func (p *passage) open() (err error) {
	if !p.there {
		p.entrance, p.exit, err = fdpass.NewPassage()
		p.there = err == nil
	}
	return err
}

// mayPass tells whether connections may be passed to and by the worker.
func (m *Mailbox) mayPass() bool {
	return m != nil && m.passes && m.requests.Slots.Passes && !m.rulesChanged && !m.Drains()
}

// hasExit tells whether the worker was sent the exit of its passage.
func (m *Mailbox) hasExit() bool {
	s := m.requests.Slots
	s.mu.Lock()
	defer s.mu.Unlock()
	return m.passage.told
}

// endPassage lets nobody pass any more, whoever has the entrance. The worker receives what was passed before, and then end of file.
func (m *Mailbox) endPassage() {
	s := m.requests.Slots
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unseat(m)
	if m.passage.there {
		unix.Shutdown(m.passage.entrance, unix.SHUT_WR)
	}
}

// openExit returns the exit of the passage, which has ended; nil: there is none any more. Receiving from it waits for nothing, since end of
// file follows. Until closePassage the passage is there, and would be saved.
func (m *Mailbox) openExit() *fdpass.Conn {
	s := m.requests.Slots
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !m.passage.there {
		return nil
	}
	exit, err := fdpass.NewConn(os.NewFile(uintptr(m.passage.exit), "exit of a passage"))
	if err != nil {
		return nil // does not happen: it is open
	}
	exit.Distrust() // what is there other workers have sent
	exit.KeepWhole()
	return exit
}

// closePassage closes both ends. What was saved must not be closed: hence the gate.
func (m *Mailbox) closePassage(exit *fdpass.Conn, emptied bool) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	s := m.requests.Slots
	s.mu.Lock()
	defer s.mu.Unlock()
	m.passage.there = false
	unix.Close(m.passage.entrance)
	if emptied {
		exit.Close()
	} else {
		go exit.Close() // with what is there, and that may wait
	}
}

// takePassed takes out of the passage, which has ended, what the worker did not receive, as if it had handed it back.
func (m *Mailbox) takePassed() {
	m.taking.Lock()
	defer m.taking.Unlock()
	exit := m.openExit()
	if exit == nil {
		return
	}
	emptied := m.empty(exit, lastTries, func(msg *fdpass.Message) {
		hs := msg.Handoffs
		for msg.Type == fdpass.TypePass && m.requests.HandBack != nil && len(hs) > 0 {
			n, err := m.requests.HandBack(m, false, hs)
			if err == nil {
				return
			}
			exit.Discard(hs[n : n+1]) // which says nothing of those behind it
			hs = hs[n+1:]
		}
		exit.Discard(hs)
	})
	m.closePassage(exit, emptied)
}

// handlePassed handles connections that other workers have passed to this one and that it does not want, or, before ready, the word that it
// takes some. It is not to blame for what they are.
func (m *Mailbox) handlePassed(hs []fdpass.Handoff) error {
	switch {
	case len(hs) == 0:
		m.offersPass = true
		return nil
	case !m.Looks() || !m.hasExit():
		m.ours.Discard(hs)
		return fmt.Errorf("%w: a pass of a worker that nobody can have passed anything to", fdpass.ErrMalformed)
	}
	taken, _ := m.requests.HandBack(m, false, hs)
	m.ours.Discard(hs[taken:])
	return nil
}
