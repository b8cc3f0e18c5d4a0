package supervisor

import (
	"encoding/json"
	"fmt"

	"github.com/handfast/handfast/master/reexec"
)

// Notices are what a worker says of itself by man 3 sd_notify.
type Notices interface {
	Env() []string // how the worker finds where to send them
	Started(pid int)
	Ready() <-chan struct{}    // closed by READY=1
	Stopping() <-chan struct{} // closed by STOPPING=1
	Said() Said
	// Close comes last and once. It must not wait.
	Close()
	// Save returns what the program that takes this one's place needs to go on, to be written as
	// JSON, and keeps descriptors. Nothing moves what was restored before Resume.
	Save(*reexec.Bundle) (any, error)
	Resume()
}

// Said is what a worker has said last.
type Said struct {
	Status  string // STATUS=, printable
	Pings   uint64 // how often it has said WATCHDOG=1
	Trigger bool   // it has said WATCHDOG=trigger, once at least
}

// noNotices are those of a worker that has nowhere to send them.
type noNotices struct{}

func (noNotices) Env() []string                    { return nil }
func (noNotices) Started(int)                      {}
func (noNotices) Ready() <-chan struct{}           { return nil }
func (noNotices) Stopping() <-chan struct{}        { return nil }
func (noNotices) Said() Said                       { return Said{} }
func (noNotices) Close()                           {}
func (noNotices) Save(*reexec.Bundle) (any, error) { return nil, nil }
func (noNotices) Resume()                          {}

// openNotices makes those of a worker that is about to be started.
func (s *Supervisor) openNotices() (Notices, error) {
	if s.cfg.NewNotices == nil {
		return noNotices{}, nil
	}
	return s.cfg.NewNotices()
}

// notifies tells whether a worker that is watched, since it has sent WATCHDOG=1, has done so since the last time.
func (w *worker) notifies() bool {
	said, before := w.notices.Said(), w.pings
	w.pings = said.Pings
	return !said.Trigger && (said.Pings == 0 || said.Pings != before)
}

// noticesPart is where a bundle has the notices of workers, by their processes, if there are some.
var noticesPart = reexec.Part{Name: "supervisor.notices", Version: 1}

func (s *Supervisor) saveNotices(b *reexec.Bundle) error {
	all := make(map[int]json.RawMessage)
	for w := range s.workers {
		if w.readyAt.IsZero() {
			continue
		}
		state, err := w.notices.Save(b)
		if err != nil {
			return err
		}
		if state == nil {
			continue
		}
		if all[w.pid()], err = json.Marshal(state); err != nil {
			return fmt.Errorf("supervisor: %w", err)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return b.Put(noticesPart, all)
}

// restoreNotices gives workers that were restored the notices of the program before.
func (s *Supervisor) restoreNotices(b *reexec.Bundle) error {
	if !b.Has(noticesPart) {
		return nil
	}
	var all map[int]json.RawMessage
	if err := b.Get(noticesPart, &all); err != nil {
		return err
	}
	for w := range s.workers {
		state, ok := all[w.pid()]
		if !ok || s.cfg.RestoreNotices == nil {
			continue
		}
		notices, err := s.cfg.RestoreNotices(w.pid(), state)
		if err != nil {
			return err
		}
		w.notices = notices
	}
	return nil
}
