package kernelroute

import (
	"context"
	"net"
	"os"
	"sync"
	"time"
)

// attendance is the master's accepting from listeners that workers share: of slots whose
// workers do not accept, or that are empty. Its methods belong to one goroutine; one more runs
// for each listener that is attended, or will be.
type attendance struct {
	failed  func(error)
	current map[*os.File]visit
	running sync.WaitGroup
}

// attend accepts from a listener until ctx ends.
type attend func(ctx context.Context, listener *os.File) error

// visit is one turn of accepting from a listener.
type visit struct {
	attend attend
	end    context.CancelFunc
	ended  chan struct{}
}

// after is attend, begun after a while.
func (f attend) after(delay time.Duration) attend {
	return func(ctx context.Context, listener *os.File) error {
		select {
		case <-time.After(delay):
			return f(ctx, listener)
		case <-ctx.Done():
			return nil
		}
	}
}

// begin attends a listener, in place of how that was done before.
func (s *attendance) begin(listener *os.File, attend attend) {
	before, visited := s.current[listener]
	s.end(listener)
	ctx, cancel := context.WithCancel(context.Background())
	v := visit{attend, cancel, make(chan struct{})}
	s.current[listener] = v
	s.running.Go(func() {
		defer close(v.ended)
		if visited {
			<-before.ended
		}
		if ctx.Err() != nil { // nobody is to be accepted any more
			return
		}
		if err := attend(ctx, listener); err != nil && ctx.Err() == nil {
			s.failed(err)
		}
	})
}

// again begins anew what was done, if anything was: the listener had failed.
func (s *attendance) again(listener *os.File) {
	if v, ok := s.current[listener]; ok {
		s.begin(listener, v.attend)
	}
}

// end stops accepting from a listener.
func (s *attendance) end(listener *os.File) {
	if v, ok := s.current[listener]; ok {
		v.end()
		delete(s.current, listener)
	}
}

// endAll stops accepting.
func (s *attendance) endAll() {
	for listener := range s.current {
		s.end(listener)
	}
}

// controlFile calls f with the descriptor of a file.
func controlFile(file *os.File, f func(fd int) error) (err error) {
	if file == nil {
		return net.ErrClosed
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}
