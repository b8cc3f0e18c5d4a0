package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// attendance is the master's accepting from listeners that workers share: of slots whose
// workers do not accept, or that are empty. Its methods belong to one goroutine; one more runs
// for each listener that is attended, or will be.
type attendance struct {
	polite  bool // workers may wait in accept, so that the listeners must stay as they are
	failed  func(error)
	current map[*os.File]visit
	running sync.WaitGroup
}

// visit is one turn of accepting from a listener.
type visit struct {
	end   context.CancelFunc
	ended chan struct{}
}

// begin makes a balancer accept from a listener after a while, in place of whom it was before.
func (s *attendance) begin(listener *os.File, b *Balancer, after time.Duration) {
	before, visited := s.current[listener]
	s.end(listener)
	ctx, cancel := context.WithCancel(context.Background())
	v := visit{cancel, make(chan struct{})}
	s.current[listener] = v
	s.running.Go(func() {
		defer close(v.ended)
		if visited {
			<-before.ended
		}
		select {
		case <-time.After(after):
		case <-ctx.Done():
			return
		}
		attend := b.Attend
		if s.polite {
			attend = b.attendPolitely
		}
		if err := attend(ctx, listener); err != nil && ctx.Err() == nil {
			s.failed(err)
		}
	})
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

// Attend accepts connections from a listener, which it borrows, until ctx ends. Others may
// accept from it at the same time. It makes it non-blocking.
func (b *Balancer) Attend(ctx context.Context, listener *os.File) error {
	a, err := newAttendant(b, listener, true)
	if err != nil {
		return err
	}
	defer a.file.Close()
	return a.acceptUntil(ctx)
}

// politePoll is how long attendPolitely waits before it looks whether to go on.
const politePoll = 50 * time.Millisecond

// attendPolitely is Attend without making the listener non-blocking. Should another process
// be faster it waits in accept for the next connection, which it then takes even if ctx has
// ended.
func (b *Balancer) attendPolitely(ctx context.Context, listener *os.File) error {
	a, err := newAttendant(b, listener, false)
	if err != nil {
		return err
	}
	defer a.file.Close()
	return a.attendPolitely(ctx)
}

func (a *acceptor) attendPolitely(ctx context.Context) (err error) {
	controlErr := a.raw.Control(func(listener uintptr) {
		for err == nil && ctx.Err() == nil {
			poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
			if n, _ := unix.Poll(poll, int(politePoll.Milliseconds())); n > 0 {
				a.err, a.scarce = nil, false
				a.takeOne(listener)
				a.flush()
				if isFatal(a.err) {
					err = fmt.Errorf("master: %w", os.NewSyscallError("accept4", a.err))
				} else if a.err != nil || a.scarce {
					a.rest(ctx)
				}
			}
		}
	})
	return errors.Join(controlErr, err)
}

// takeBacklog accepts what waits in a listener's queue.
func (b *Balancer) takeBacklog(listener *os.File) error {
	a, err := newAttendant(b, listener, true)
	if err != nil {
		return err
	}
	defer a.file.Close()
	return a.takeBacklog()
}

// newAttendant makes an acceptor with a descriptor of its own for a listener. To wait in the
// poller it must be non-blocking.
func newAttendant(b *Balancer, listener *os.File, nonBlocking bool) (*acceptor, error) {
	var file *os.File
	err := controlFile(listener, func(fd int) error {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil && nonBlocking {
			err = unix.SetNonblock(fd, true)
		}
		if err == nil {
			file = os.NewFile(uintptr(fd), "attended listener")
		}
		return os.NewSyscallError("fcntl", err)
	})
	if err != nil {
		return nil, fmt.Errorf("master: %w", err)
	}
	a, err := acceptFrom(b, file)
	if err != nil {
		return nil, err
	}
	a.shared = true
	return a, nil
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
