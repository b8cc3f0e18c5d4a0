package mailbox

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// saved is what the next program needs to go on with a mailbox.
type saved struct {
	Ours, Theirs     int // descriptors
	Offered, Listens bool
	Drained          bool
	Left             string // why; empty: it has not
	Report           *fdpass.Report
}

// Save implements supervisor.Portable. The worker has said that it is ready.
func (m *Mailbox) Save(b *reexec.Bundle) (any, error) {
	s := saved{
		Ours:    b.KeepFile(m.ours),
		Theirs:  b.KeepFile(m.theirs),
		Offered: m.offered,
		Listens: m.listens,
		Drained: m.drained.Load(),
		Report:  m.report.Load(),
	}
	if m.leftErr != nil {
		s.Left = m.leftErr.Error()
	}
	return s, nil
}

// Restore makes a mailbox of what Save returned in the program before. Nothing is received before
// Resume.
func Restore(b *reexec.Bundle, state json.RawMessage, readmit func([]fdpass.Handoff)) (*Mailbox, error) {
	var s saved
	if err := json.Unmarshal(state, &s); err != nil {
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	ourFile, err := b.Take(s.Ours, "mailbox")
	if err != nil {
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	ours, err := fdpass.NewMasterConn(ourFile)
	if err != nil {
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	file, err := b.Take(s.Theirs, "mailbox of the worker")
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	theirs, err := fdpass.NewConn(file)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	m := newMailbox(ours, theirs, file, readmit)
	m.offered, m.listens = s.Offered, s.Listens
	m.drained.Store(s.Drained)
	m.report.Store(s.Report)
	close(m.ready)
	if s.Left != "" {
		m.leftErr = errors.New(s.Left)
	}
	return m, nil
}

// Resume implements supervisor.Portable.
func (m *Mailbox) Resume() {
	go m.listen()
	if m.leftErr != nil {
		go func() {
			m.takeBack()
			close(m.left)
		}()
	}
}
