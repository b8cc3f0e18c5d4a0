package nodeipc

import (
	"time"

	"github.com/handfast/handfast/master/openconns"
	"github.com/handfast/handfast/master/supervisor"
)

// exitDelay is how long a worker that has nothing left may take to exit by itself: to close its
// database, and run its handlers.
const exitDelay = time.Second

// Started says which process the worker is.
func (l *Link) Started(p supervisor.Process) { l.process = p }

// DrainsGroup implements supervisor.Link: the process that has the channel is told, its children are not.
func (l *Link) DrainsGroup() bool { return false }

// Finished is closed when the worker was told to finish, has disconnected its channel, which it does
// when its servers are closed, has no connection left, and has not exited: a timer or a database
// pool keeps it.
func (l *Link) Finished() <-chan struct{} { return l.finished }

// awaitEnd closes finished.
func (l *Link) awaitEnd() {
	select {
	case <-l.gone:
	case <-l.ended:
		return
	}
	open := l.primary.cfg.Open
	if l.process == nil || open == nil {
		return
	}
	pid := l.process.PID()
	none, err := openconns.Await(l.ended, func() (bool, error) {
		open, err := open(pid)
		return !open, err
	})
	if err != nil {
		l.primary.log.Info("cannot see whether a worker that drains has connections, so it may take the whole drain timeout", "slot", l.slot, "pid", pid, "err", err)
	}
	if !none {
		return
	}
	select {
	case <-time.After(exitDelay):
		close(l.finished)
	case <-l.ended:
	}
}
