package mailbox

import "github.com/handfast/handfast/fdpass"

// Requests are what a master asks of a worker beside taking connections. A worker that cannot do it, which
// is known when it is ready, is not held to it.
type Requests struct {
	MaxConnections int  // that it may have open at a time; 0: any number
	Pings          bool // it is to be asked whether it is there

	// HandBack takes ownership of the first n of conns, which the worker has between two requests. looked: it has found that they
	// belong elsewhere; else others have passed them to it. err says why the next
	// one is none that it can have been handed; then its link ends. nil: no worker is to hand connections back.
	HandBack func(from *Mailbox, looked bool, conns []fdpass.Handoff) (n int, err error)
	Slots    *Slots // only if there is HandBack
	Rules    string // by which clients are recognised, as the worker was told by environment; likewise
}

// MaxConnections returns how many connections the worker may have open; 0: any number, or it is not
// known yet whether the worker can do what is requested, since it is not ready.
func (m *Mailbox) MaxConnections() int {
	if !m.isKnown() || !m.limited {
		return 0
	}
	return m.requests.MaxConnections
}

// isKnown tells whether it is known what the worker can do.
func (m *Mailbox) isKnown() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// charge returns for how many of n connections there is room, and counts them as given.
//
// A connection that was given and is not reported closed counts as open: those that still lie in the mailbox, those
// that the worker has open, and those that it has closed since its last report. So a report that is old
// makes us count too many, and never too few: the worker has no more open than it may,
// however many come between two reports.
func (m *Mailbox) charge(n int) int {
	if !m.limited {
		m.given.Add(int64(n))
		return n
	}
	for {
		given := m.given.Load()
		room := max(int64(m.requests.MaxConnections)-(given-m.reportedClosed(given)), 0)
		admitted := min(int64(n), room)
		if m.given.CompareAndSwap(given, given+admitted) {
			return int(admitted)
		}
	}
}

// refund takes back what charge has counted.
func (m *Mailbox) refund(n int) { m.given.Add(-int64(n)) }

// OpenConnections returns how many connections the worker has open, with those that it is about to receive, as far as it has said; ok
// is false if it says nothing.
func (m *Mailbox) OpenConnections() (n int, ok bool) {
	if _, ok := m.Report(); !ok {
		return 0, false
	}
	given := m.given.Load()
	return int(given - m.reportedClosed(given)), true
}

// reportedClosed returns how many of the given connections the worker says are closed.
func (m *Mailbox) reportedClosed(given int64) int64 {
	r, _ := m.Report()
	if r.Accepted < r.Open {
		return 0 // nonsense, which harms the worker itself
	}
	return int64(min(r.Accepted-r.Open, uint64(given)))
}
