package mailbox

// Wishes are what a master asks of a worker beside taking connections. One that cannot do it, which
// is known when it is ready, is spared.
type Wishes struct {
	MaxConnections int  // that it may have open at a time; 0: any number
	Pings          bool // it is to be asked whether it is there
}

// MaxConnections returns how many connections the worker may have open; 0: any number, or it is not
// known yet whether the worker can do what is wished, since it is not ready.
func (m *Mailbox) MaxConnections() int {
	if !m.isSettled() || !m.limited {
		return 0
	}
	return m.wishes.MaxConnections
}

// isSettled tells whether it is known what the worker can do.
func (m *Mailbox) isSettled() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// admit returns for how many of n connections there is room, and counts them as given.
//
// What was given and is not reported closed is counted as open: what still lies in the mailbox, what
// the worker has open, and what it has closed since its last report. So a report that is old
// makes us count too many, and never too few: the worker has no more open than it may,
// however many come between two reports.
func (m *Mailbox) admit(n int) int {
	if !m.limited {
		return n
	}
	for {
		given := m.given.Load()
		room := max(int64(m.wishes.MaxConnections)-(given-m.over(given)), 0)
		admitted := min(int64(n), room)
		if m.given.CompareAndSwap(given, given+admitted) {
			return int(admitted)
		}
	}
}

// takeOff takes back what admit has counted.
func (m *Mailbox) takeOff(n int) {
	if m.limited {
		m.given.Add(-int64(n))
	}
}

// over returns how many of the given connections the worker says are closed.
func (m *Mailbox) over(given int64) int64 {
	r, _ := m.Report()
	if r.Accepted < r.Open {
		return 0 // nonsense, which harms the worker itself
	}
	return int64(min(r.Accepted-r.Open, uint64(given)))
}
