package balancer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
)

// AcceptShared accepts connections from a listener, which it borrows, until ctx ends. Others may
// accept from it at the same time. It makes it non-blocking.
func (b *Balancer) AcceptShared(ctx context.Context, listener *os.File) error {
	a, err := newSharedAcceptor(b, listener, true)
	if err != nil {
		return err
	}
	defer a.file.Close()
	return a.acceptUntil(ctx)
}

// refusedAtATime is how many connections RefuseOverdue refuses before it asks again how many are overdue.
const refusedAtATime = 16

// RefuseOverdue returns a loop that accepts the connections which have waited in a listener's queue for too long, so
// that they can be refused. It looks every tick. How many they are overdue says, which is asked only while some
// wait; the first in the queue are the oldest. A worker that has just become ready takes those first, so overdue is
// asked again after each connection, or if there are many after refusedAtATime: else the loop would refuse
// younger ones in their place. The loop does not make the listener non-blocking: workers may
// wait in accept. Should a worker be faster, the loop itself waits in accept for the next connection, which it
// then takes even if ctx has ended.
func (b *Balancer) RefuseOverdue(tick time.Duration, overdue func(waiting int) int) func(context.Context, *os.File) error {
	return func(ctx context.Context, listener *os.File) error {
		a, err := newSharedAcceptor(b, listener, false)
		if err != nil {
			return err
		}
		defer a.file.Close()
		for look := time.NewTicker(tick); ; {
			if err := a.refuseOverdue(ctx, overdue); err != nil {
				return err
			}
			select {
			case <-look.C:
			case <-ctx.Done():
				look.Stop()
				return nil
			}
		}
	}
}

func (a *acceptor) refuseOverdue(ctx context.Context, overdue func(waiting int) int) error {
	for ctx.Err() == nil {
		waiting, err := a.waiting()
		if waiting == 0 || err != nil {
			return err
		}
		late := min(overdue(waiting), waiting)
		if late == 0 {
			return nil
		}
		if late <= refusedAtATime {
			late = 1
		}
		for range min(late, refusedAtATime) {
			if err := a.acceptOne(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// waiting returns how many connections are in the listener's queue.
func (a *acceptor) waiting() (n int, err error) {
	controlErr := a.raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int(info.Unacked) // of a listener (tcp_get_info)
		}
	})
	return n, errors.Join(controlErr, os.NewSyscallError("getsockopt", err))
}

// acceptOne accepts and routes one connection, if there is one.
func (a *acceptor) acceptOne(ctx context.Context) error {
	if n, err := a.waiting(); n == 0 {
		return err
	}
	a.err, a.scarce = nil, false
	// Without the lock, since it may wait, however seldom. Then a connection that it accepts while the program is
	// being replaced is reset, instead of refused.
	if err := a.raw.Control(func(listener uintptr) { a.takeOne(listener) }); err != nil {
		return err
	}
	reexec.Lock.RLock()
	a.flush()
	reexec.Lock.RUnlock()
	switch {
	case isFatal(a.err):
		return fmt.Errorf("balancer: %w", os.NewSyscallError("accept4", a.err))
	case a.err != nil || a.scarce:
		a.rest(ctx)
	}
	return nil
}

// TakeBacklog accepts what waits in a listener's queue. It borrows the listener.
func (b *Balancer) TakeBacklog(listener *os.File) error {
	a, err := newSharedAcceptor(b, listener, true)
	if err != nil {
		return err
	}
	defer a.file.Close()
	return a.takeBacklog()
}

// newSharedAcceptor makes an acceptor with a descriptor of its own for a listener. To wait in the
// poller it must be non-blocking.
func newSharedAcceptor(b *Balancer, listener *os.File, nonBlocking bool) (*acceptor, error) {
	fd, err := sock.Duplicate(listener)
	if err == nil && nonBlocking {
		if err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("balancer: %w", err)
	}
	a, err := acceptFrom(b, os.NewFile(uintptr(fd), "shared listener"))
	if err != nil {
		return nil, err
	}
	a.shared = true
	return a, nil
}
