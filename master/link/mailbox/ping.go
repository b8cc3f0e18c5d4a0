package mailbox

import (
	"time"

	"github.com/handfast/handfast/fdpass"
)

// Answers tells whether the worker is ready and answers pings.
func (m *Mailbox) Answers() bool { return m.isKnown() && m.answers }

// Ping implements supervisor.Link: it asks the worker whether it still takes connections,
// unless it owes an answer, and tells whether there was a sign of that since the last time. For a worker that does not answer
// pings the sign is that it has received messages, or that it has all. It does not wait. It belongs to one
// goroutine; call it only after Ready is closed.
//
// Signs are the answer; a report of more accepted connections, since the ping may lie behind
// many; and that a mailbox which is too full for a ping has had room for connections.
func (m *Mailbox) Ping() (alive bool) {
	if !m.answers {
		unread, err := m.theirs.Unread()
		return m.progress.Note(err == nil && unread > 0, m.ours.Sent()-uint64(unread))
	}
	alive = m.alive.Swap(false)
	if !m.owes.CompareAndSwap(false, true) {
		return alive
	}
	if m.ours.TrySend(fdpass.TypePing, nil) != nil {
		m.owes.Store(false)
		sent := m.sent.Load()
		alive = alive || sent != m.sentBefore
		m.sentBefore = sent
	}
	return alive
}

// handlePong notes an answer; one before ready says that there will be more.
func (m *Mailbox) handlePong() {
	m.ponged = true
	m.alive.Store(true)
	m.owes.Store(false)
}

// LastNamed returns when the worker last said that further requests have named it (fdpass.Report), which it does within a second; the
// zero time: it never did.
func (m *Mailbox) LastNamed() (last time.Time) {
	if at := m.named.Load(); at != 0 {
		last = time.Unix(0, at)
	}
	return last
}

// handleReport keeps what the worker says of its connections.
func (m *Mailbox) handleReport(r fdpass.Report) {
	last, _ := m.Report()
	if r.Accepted > last.Accepted {
		m.alive.Store(true)
	}
	if r.Named != last.Named {
		m.named.Store(time.Now().UnixNano())
	}
	m.report.Store(&r)
}
