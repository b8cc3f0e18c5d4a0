package systemd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// Source is what a master tells.
type Source interface {
	// Snapshot is what its supervisor is doing, and a channel that is closed when there is
	// something new.
	Snapshot() (*supervisor.Snapshot, <-chan struct{})
	// Stopping is closed when it begins to stop.
	Stopping() <-chan struct{}
	// Ping returns when its supervisor has been seen alive.
	Ping(context.Context) error
}

// Follow notifies the manager of all changes until ctx ends. Failed is called with what goes
// wrong, by one goroutine at a time.
//
// READY=1 is sent when each slot has had a worker for the first time, and after each
// reload; RELOADING=1 when a reload begins; STOPPING=1 when the master was asked to stop,
// which may go on accepting for a while. STATUS says the same to people.
func (n *Notifier) Follow(ctx context.Context, source Source, failed func(error)) {
	var mu sync.Mutex
	report := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failed(err)
	}
	var pinging sync.WaitGroup
	defer pinging.Wait()
	pinging.Go(func() { n.everyPing(ctx, source.Ping, report) })
	var f follower
	stopping := source.Stopping()
	for {
		snapshot, changed := source.Snapshot()
		for _, message := range f.next(snapshot) {
			if err := n.Send(message...); err != nil {
				report(err)
			}
		}
		select {
		case <-changed:
		case <-stopping:
			stopping, f.stopping = nil, true
		case <-ctx.Done():
			return
		}
	}
}

// follower knows what the manager was told.
type follower struct {
	ready    bool      // once
	reload   time.Time // when the last reload began that it was told of
	over     bool      // that it was told the end of
	stopping bool      // the master is
	stopped  bool      // it was told so
	status   string
}

// next returns the messages that a snapshot is reason for.
func (f *follower) next(s *supervisor.Snapshot) (messages [][]string) {
	status := f.describe(s)
	say := func(assignments ...string) {
		messages, f.status = append(messages, append(assignments, "STATUS="+status)), status
	}
	if !f.ready && len(s.Slots) > 0 && served(s) == len(s.Slots) { // before the first start there are none
		f.ready = true
		say("READY=1")
	}
	if r := s.Reload; r != nil && f.ready && !f.stopping {
		if !r.Began.Equal(f.reload) {
			f.reload, f.over = r.Began, false
			say(reloading()...)
		}
		if !f.over && !r.Ended.IsZero() {
			f.over = true
			say("READY=1")
		}
	}
	if (f.stopping || s.Stopping) && !f.stopped {
		f.stopped = true
		say("STOPPING=1")
	}
	if status != f.status {
		say()
	}
	return messages
}

// describe says it to people.
func (f *follower) describe(s *supervisor.Snapshot) string {
	switch r := s.Reload; {
	case f.stopping && !s.Stopping:
		return fmt.Sprintf("Stopping: %d of %d slots served, soon nobody is accepted any more", served(s), len(s.Slots))
	case s.Stopping:
		return fmt.Sprintf("Stopping: %d workers finish what they have", served(s)+len(s.Draining))
	case r != nil && r.Ended.IsZero() && r.Done == r.Slots:
		return fmt.Sprintf("Reload to generation %d: the new workers are on probation", r.Generation)
	case r != nil && r.Ended.IsZero():
		return fmt.Sprintf("Reload to generation %d: %d of %d slots", r.Generation, r.Done, r.Slots)
	case r != nil && r.Err != nil:
		return fmt.Sprintf("%d of %d slots served; the reload failed: %v", served(s), len(s.Slots), r.Err)
	default:
		return fmt.Sprintf("%d of %d slots served, generation %d", served(s), len(s.Slots), s.Generation)
	}
}

// served is the number of slots that a worker is in.
func served(s *supervisor.Snapshot) (n int) {
	for _, slot := range s.Slots {
		if slot.Worker != nil {
			n++
		}
	}
	return n
}
