package mailbox

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// part is what Save seals.
var part = reexec.Part{Name: "mailbox", Version: 2}

// saved is what the next program needs to go on with a mailbox.
type saved struct {
	Ours, Theirs     int // descriptors
	Offered, Listens bool
	Drained          bool
	Left             string // why; empty: it has not
	Report           *savedReport

	MaxConnections int   // that the worker may have open, if it can be held to that; else 0
	Given          int64 // counted for that
	Answers        bool  // pings
	Owes           bool  // an answer

	HandsBack bool
	Rules     string // by which the worker places clients, if it hands back
	Has       int64  // with what others may have passed to it
	Passes    bool
	Passage   *savedPassage // nil: there is none
}

// savedPassage is a passage.
type savedPassage struct {
	Entrance, Exit int // descriptors
	Told           bool
}

// savedReport is a fdpass.Report, without what the next program need not know.
type savedReport struct {
	Open, Accepted uint64
	Passed         uint32
}

// Save implements supervisor.Link. The worker has said that it is ready.
func (m *Mailbox) Save(b *reexec.Bundle) (any, error) {
	s := saved{
		Ours:    b.KeepFile(m.ours),
		Theirs:  b.KeepFile(m.theirs),
		Offered: m.offered,
		Listens: m.accepts,
		Drained: m.drained.Load(),

		MaxConnections: m.MaxConnections(),
		Given:          m.given.Load(),
		Answers:        m.Answers(),
		Owes:           m.owes.Load(),

		HandsBack: m.Looks(),
		Rules:     m.requests.Rules,
		Has:       m.has.Load(),
		Passes:    m.passes,
	}
	if slots := m.requests.Slots; slots != nil {
		slots.mu.Lock()
		defer slots.mu.Unlock()
		s.Has += slots.given.Load()
		if p := &m.passage; p.there {
			s.Passage = &savedPassage{b.Keep(p.entrance), b.Keep(p.exit), p.told}
		}
	}
	if r, ok := m.Report(); ok {
		s.Report = &savedReport{r.Open, r.Accepted, r.Passed}
	}
	if m.rulesChanged {
		s.Rules = ""
	}
	if m.leftErr != nil {
		s.Left = m.leftErr.Error()
	}
	return reexec.Seal(part, s)
}

// Restore makes a mailbox of what Save returned in the program before. Nothing is received before
// Resume. The worker was told of the requests of the program before, so it is only known to do what those and these have in
// common; the number of connections is that of the new ones.
func Restore(b *reexec.Bundle, state json.RawMessage, requests Requests, readmit func([]fdpass.Handoff)) (*Mailbox, error) {
	var s saved
	if err := b.Unseal(state, part, &s); err != nil {
		return nil, fmt.Errorf("taking a mailbox over: %w", err)
	}
	ourFile, err := b.Take(s.Ours, "mailbox")
	if err != nil {
		return nil, fmt.Errorf("taking a mailbox over: %w", err)
	}
	ours, err := fdpass.NewMasterConn(ourFile)
	if err != nil {
		return nil, fmt.Errorf("taking a mailbox over: %w", err)
	}
	file, err := b.Take(s.Theirs, "mailbox of the worker")
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("taking a mailbox over: %w", err)
	}
	theirs, err := fdpass.NewConn(file)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("taking a mailbox over: %w", err)
	}
	if s.Passage != nil && requests.Slots == nil {
		requests.Slots = new(Slots) // which ends it
	}
	m := newMailbox(ours, theirs, file, requests, readmit)
	m.limited = s.MaxConnections > 0 && requests.MaxConnections > 0
	m.given.Store(s.Given)
	m.answers = s.Answers && requests.Pings
	m.owes.Store(s.Owes)
	m.handsBack = s.HandsBack && requests.HandBack != nil
	m.replaced = requests.Slots != nil // until it is in a slot again
	m.rulesChanged = s.Rules != requests.Rules
	m.has.Store(s.Has)
	m.passes = s.Passes && m.handsBack
	if p := s.Passage; p != nil {
		if err := errors.Join(b.TakeFD(p.Entrance), b.TakeFD(p.Exit)); err != nil {
			ours.Close()
			theirs.Close()
			return nil, fmt.Errorf("taking a mailbox over: %w", err)
		}
		m.passage = passage{there: true, entrance: p.Entrance, exit: p.Exit, told: p.Told}
	}
	m.alive.Store(true)
	m.offered, m.accepts = s.Offered, s.Listens
	m.drained.Store(s.Drained)
	if r := s.Report; r != nil {
		m.report.Store(&fdpass.Report{Open: r.Open, Accepted: r.Accepted, Passed: r.Passed})
	}
	close(m.ready)
	if s.Left != "" {
		m.leftErr = errors.New(s.Left)
	}
	return m, nil
}

// Resume implements supervisor.Link.
func (m *Mailbox) Resume() {
	m.beginHandBack()
	if !m.mayPass() {
		m.endPassage()
	}
	go m.receive()
	if m.leftErr != nil {
		go func() {
			m.takeBack()
			close(m.left)
		}()
	}
}
