package kernelroute

import (
	"context"
	"os"
	"sync"
	"time"
)

// sharedAcceptors are the loops by which the master accepts from listeners that workers share: those of slots
// whose workers do not accept, or that are empty. Its methods belong to one goroutine; one more runs
// for each listener that is accepted from, or will be.
type sharedAcceptors struct {
	failed  func(error) // told why a loop has ended before it was stopped
	current map[*os.File]runningLoop
	running sync.WaitGroup
}

// acceptLoop accepts from a listener, which it borrows, until ctx ends.
type acceptLoop func(ctx context.Context, listener *os.File) error

// runningLoop is a loop that was started for a listener.
type runningLoop struct {
	loop  acceptLoop
	stop  context.CancelFunc
	ended chan struct{}
}

func newSharedAcceptors() sharedAcceptors {
	return sharedAcceptors{failed: func(error) {}, current: make(map[*os.File]runningLoop)}
}

// after is the loop begun after a while.
func (f acceptLoop) after(delay time.Duration) acceptLoop {
	return func(ctx context.Context, listener *os.File) error {
		select {
		case <-time.After(delay):
			return f(ctx, listener)
		case <-ctx.Done():
			return nil
		}
	}
}

// start runs a loop for a listener, in place of the one that runs for it: that one is stopped, and has ended when the
// new one begins.
func (s *sharedAcceptors) start(listener *os.File, loop acceptLoop) {
	before, replaces := s.current[listener]
	s.stop(listener)
	ctx, cancel := context.WithCancel(context.Background())
	r := runningLoop{loop, cancel, make(chan struct{})}
	s.current[listener] = r
	s.running.Go(func() {
		defer close(r.ended)
		if replaces {
			<-before.ended
		}
		if ctx.Err() != nil { // nobody is to be accepted any more
			return
		}
		if err := loop(ctx, listener); err != nil && ctx.Err() == nil {
			s.failed(err)
		}
	})
}

// runs tells whether the listener has a loop, or had one that has failed.
func (s *sharedAcceptors) runs(listener *os.File) bool { return s.current[listener].ended != nil }

// restart runs the listener's loop anew, if it has one: the listener had failed.
func (s *sharedAcceptors) restart(listener *os.File) {
	if r, ok := s.current[listener]; ok {
		s.start(listener, r.loop)
	}
}

// stop ends the listener's loop, if it has one. It does not wait.
func (s *sharedAcceptors) stop(listener *os.File) {
	if r, ok := s.current[listener]; ok {
		r.stop()
		delete(s.current, listener)
	}
}

// stopAll ends all loops. It does not wait.
func (s *sharedAcceptors) stopAll() {
	for listener := range s.current {
		s.stop(listener)
	}
}
