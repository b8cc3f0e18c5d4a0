package worker

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// envReport is 1 if the master wants reports.
const envReport = "HANDFAST_REPORT"

// reportInterval is the shortest time between two reports.
const reportInterval = time.Second

// reporter tells the master how many connections a listener has open and has accepted, a
// while after that has changed. It belongs to the listener, whose lock its fields are under.
//
// It has a descriptor of the mailbox for itself, since it goes on when the listener has
// left that, until the last connection is closed: who drains is asked about most.
type reporter struct {
	conn *fdpass.Conn
	due  *time.Timer // nil: there is nothing to report
}

// newReporter borrows the mailbox. It returns nil if nobody wants reports.
func newReporter(mailbox *os.File) (*reporter, error) {
	if os.Getenv(envReport) != "1" {
		return nil, nil
	}
	raw, err := mailbox.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	dup := -1
	var callErr error
	err = raw.Control(func(fd uintptr) { dup, callErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, os.NewSyscallError("fcntl", callErr)); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	conn, err := fdpass.NewConn(os.NewFile(uintptr(dup), "handfast mailbox"))
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	return &reporter{conn: conn}, nil
}

// reportSoon is called when the numbers have changed. The caller holds l.mu.
func (l *Listener) reportSoon() {
	if r := l.reporter; r != nil && r.due == nil {
		r.due = time.AfterFunc(reportInterval, l.report)
	}
}

func (l *Listener) report() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reporter.due = nil
	err := l.reporter.conn.TrySendReport(fdpass.Report{Open: uint64(l.open), Accepted: l.accepted})
	if errors.Is(err, fdpass.ErrFull) {
		l.reportSoon()
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
