package worker

import (
	"errors"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/handfast/handfast/fdpass"
)

const (
	// reportInterval is how long after a change it is reported.
	reportInterval = time.Second
	// limitInterval is the same for a worker that may have so many connections and no more:
	// until the master knows that some are closed, it refuses others in their place.
	limitInterval = 10 * time.Millisecond
	// limitShare is how many of them may have been closed without a report: this part.
	limitShare = 8
)

// reporter tells the master how many connections a listener has open and has accepted, a
// while after that has changed. It belongs to the listener, whose lock its fields are under.
//
// It has a descriptor of the mailbox for itself, since it goes on when the listener has
// left that, until the last connection is closed: a draining worker is the one that is asked about most.
type reporter struct {
	conn     *fdpass.Conn
	interval time.Duration
	most     int64       // connections closed and not reported; then it is done at once
	closed   int64       // as it was reported
	due      *time.Timer // nil: there is nothing to report
}

// newReporter borrows the mailbox. It returns nil if nobody wants reports.
func newReporter(mailbox *os.File) (*reporter, error) {
	if os.Getenv(fdpass.EnvReport) != "1" {
		return nil, nil
	}
	conn, err := duplicateMailbox(mailbox)
	if err != nil {
		return nil, err
	}
	r := &reporter{conn: conn, interval: reportInterval, most: math.MaxInt64}
	if limit, _ := strconv.ParseInt(os.Getenv(fdpass.EnvMaxConnections), 10, 64); limit > 0 {
		r.interval, r.most = limitInterval, max(limit/limitShare, 1)
	}
	return r, nil
}

// reportSoon is called when the numbers have changed. The caller holds l.mu.
func (l *Listener) reportSoon() {
	r := l.reporter
	switch {
	case r == nil:
	case l.ended()-r.closed >= r.most:
		l.reportNow()
	case r.due == nil:
		r.due = time.AfterFunc(r.interval, l.report)
	}
}

// ended returns how many connections have been closed or passed on, less those that others have passed to us. The caller holds l.mu.
func (l *Listener) ended() int64 { return int64(l.accepted) - int64(l.open) }

func (l *Listener) report() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reporter.due = nil
	l.reportNow()
}

// reportNow reports, or does so soon if there is no room for it. The caller holds l.mu.
func (l *Listener) reportNow() {
	r := l.reporter
	if r == nil {
		return
	}
	named, passed := l.back.reported()
	err := r.conn.TrySendReport(fdpass.Report{Open: uint64(l.open), Accepted: l.accepted, Named: named, Passed: passed})
	switch {
	case !errors.Is(err, fdpass.ErrFull):
		r.closed = l.ended()
	case r.due == nil:
		r.due = time.AfterFunc(r.interval, l.report)
	}
}

// close ends reporting. The caller holds the listener's lock.
func (r *reporter) close() {
	if r == nil {
		return
	}
	if r.due != nil {
		r.due.Stop()
	}
	r.conn.Close()
}
