package foreign

import (
	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/seccomp"
	"github.com/handfast/handfast/master/reexec"
)

// Saved is what the next program needs to go on with a link.
type Saved struct {
	Notifs int   `json:"Asked"` // the descriptor of the filter's notifications
	PIDs   []int // see Roots
	Told   bool  // the worker was told to finish
}

// SaveWorker notes the worker in a bundle. Calls that wait for an answer of the filter go on waiting.
func (l *Link) SaveWorker(b *reexec.Bundle) Saved {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Saved{Notifs: b.KeepFile(l.Notifs.File()), PIDs: l.pids, Told: l.Drainer.Told()}
}

// Restore makes a link of what SaveWorker returned in the program before. It is ready.
func Restore(b *reexec.Bundle, s Saved, drain launch.Drain, log hclog.Logger) (*Link, error) {
	file, err := b.Take(s.Notifs, "seccomp notifications")
	if err != nil {
		return nil, err
	}
	l := newLink(drain, log)
	if l.Notifs, err = seccomp.NewNotifications(file); err != nil {
		return nil, err
	}
	l.pids = s.PIDs
	if s.Told {
		l.SetTold()
	}
	l.MarkReady()
	return l, nil
}
