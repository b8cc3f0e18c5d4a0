package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/steer"
	"github.com/handfast/handfast/master/supervisor"
)

// queuePoll is the time between two looks at the queues of listeners, at the end.
const queuePoll = 5 * time.Millisecond

// steered is the slots of a Master whose clients the kernel gives to them: each has a
// listener per address (package steer). Whose worker accepts from them concerns nobody
// here. For those who do not, the master accepts and hands off; and when a slot stays empty
// beyond the patience, it accepts to refuse, or to hand to another slot.
//
// A goroutine runs for each listener that the master accepts from, and for each that it
// will; Close ends them.
type steered struct {
	groups   []*steer.Group
	table    *Table
	balancer *Balancer     // for workers that do not accept
	refuser  *Balancer     // for slots that are empty: without patience
	patience time.Duration // with an empty slot
	log      hclog.Logger
	slots    int // as the supervisor has set them

	mu        sync.Mutex
	attending map[attended]context.CancelFunc
	running   sync.WaitGroup
}

// attended is a listener: a slot's in a group.
type attended struct{ slot, group int }

// accepting is a worker that may accept from its slot's listeners.
type accepting interface {
	// Accepts tells whether it does on this address. It is asked when the worker is ready.
	Accepts(addr netip.AddrPort) bool
}

func newSteered(groups []*steer.Group, table *Table, balancer *Balancer, cfg BalancerConfig) (*steered, error) {
	patience := time.Duration(cfg.MaxRetries) * cfg.RetryDelay
	cfg.MaxRetries = 0
	refuser, err := NewBalancer(cfg, table)
	if err != nil {
		return nil, err
	}
	return &steered{
		groups:    groups,
		table:     table,
		balancer:  balancer,
		refuser:   refuser,
		patience:  patience,
		log:       cfg.Logger,
		attending: make(map[attended]context.CancelFunc),
	}, nil
}

// listeners returns those of a slot, also of one that is yet to come, and none when the
// master routes. They are borrowed until Close.
func (s *steered) listeners(slot int) (listeners []fdpass.Handoff, err error) {
	if s == nil {
		return nil, nil
	}
	for _, g := range s.groups {
		if err := g.Grow(slot + 1); err != nil {
			return nil, err
		}
		ln := fdpass.Handoff{Client: g.Addr().AddrPort()}
		if err := controlFile(g.Listener(slot), func(fd int) error { ln.FD = fd; return nil }); err != nil {
			return nil, err
		}
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

// listener returns a slot's listener on one address, or nil. It is borrowed until Close.
func (s *steered) listener(slot int, addr netip.AddrPort) *os.File {
	for _, g := range s.groups {
		if g.Addr().AddrPort() == addr {
			return g.Listener(slot)
		}
	}
	return nil
}

// Resize implements supervisor.Slots. Whoever waits in the queue of a slot that is no more
// belongs to another.
func (s *steered) Resize(n int) {
	before := s.slots
	s.slots = n
	s.table.Resize(n)
	for i, g := range s.groups {
		if err := g.Resize(n); err != nil {
			s.log.Error("the kernel does not give clients to their new slots", "address", g.Addr().String(), "slots", n, "err", err)
		}
		for slot := n; slot < before; slot++ {
			s.attend(attended{slot, i}, s.balancer, 0)
		}
		for slot := before; slot < n; slot++ {
			s.attend(attended{slot, i}, s.refuser, s.patience) // it is empty yet
		}
	}
}

// Fill implements supervisor.Slots.
func (s *steered) Fill(slot int, link supervisor.Link) {
	s.table.Fill(slot, link.(Worker))
	worker, ok := link.(accepting)
	for i, g := range s.groups {
		if ok && worker.Accepts(g.Addr().AddrPort()) {
			s.leave(attended{slot, i})
		} else {
			s.attend(attended{slot, i}, s.balancer, 0)
		}
	}
}

// Empty implements supervisor.Slots.
func (s *steered) Empty(slot int) {
	s.table.Empty(slot)
	for i := range s.groups {
		s.attend(attended{slot, i}, s.refuser, s.patience)
	}
}

// attend makes a balancer accept from a listener after a while, and nobody else of ours.
func (s *steered) attend(at attended, b *Balancer, after time.Duration) {
	s.leave(at)
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attending[at] = cancel
	s.running.Go(func() {
		select {
		case <-time.After(after):
		case <-ctx.Done():
			return
		}
		if err := b.Attend(ctx, s.groups[at.group].Listener(at.slot)); err != nil {
			s.log.Error("cannot accept for a slot", "slot", at.slot, "err", err)
		}
	})
}

// leave stops that.
func (s *steered) leave(at attended) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel, ok := s.attending[at]; ok {
		cancel()
		delete(s.attending, at)
	}
}

// hear is told what happens to workers.
func (s *steered) hear(e supervisor.Event) {
	if e.Kind == supervisor.WorkerExited {
		s.mend()
	}
}

// mend puts right what a worker did to its listeners before it left.
func (s *steered) mend() {
	for _, g := range s.groups {
		slots, err := g.Mend()
		if len(slots) > 0 {
			s.log.Warn("a worker has shut its slot's listener down, which resets who waits there", "slots", fmt.Sprint(slots), "address", g.Addr().String())
		}
		if err != nil {
			s.log.Error("a slot's listener is not what it was", "err", err)
		}
	}
}

// Serve waits until ctx ends, and then, within the patience, until those who were connected
// before have been accepted.
func (s *steered) Serve(ctx context.Context, patience time.Duration) error {
	for _, g := range s.groups {
		s.log.Info("listening", "address", g.Addr().String(), "route", "kernel")
	}
	<-ctx.Done()
	deadline := time.Now().Add(lastGrace + patience)
	err := s.each(func(listener *os.File, _ int) error {
		raw, err := listener.SyscallConn()
		if err == nil {
			dropSYNs(raw) // which may be forbidden (EPERM): then some still connect
		}
		return err
	})
	time.Sleep(lastGrace) // for handshakes that are under way (acceptor.run)
	for s.waiting() > 0 && time.Now().Before(deadline) {
		time.Sleep(queuePoll)
	}
	return err
}

// waiting returns how many connections nobody has accepted.
func (s *steered) waiting() (sum int) {
	s.each(func(_ *os.File, waiting int) error { sum += waiting; return nil })
	return sum
}

// each calls f for each listener that there ever was.
func (s *steered) each(f func(listener *os.File, waiting int) error) (err error) {
	for _, g := range s.groups {
		for slot := 0; g.Listener(slot) != nil; slot++ {
			waiting, _, queueErr := g.Queue(slot)
			if queueErr != steer.ErrNotListening {
				err = errors.Join(err, queueErr)
			}
			err = errors.Join(err, f(g.Listener(slot), waiting))
		}
	}
	return err
}

// Close refuses those whom nobody accepted, and closes the listeners. Call it when the
// workers have ended.
func (s *steered) Close(ctx context.Context) {
	s.mu.Lock()
	for _, cancel := range s.attending {
		cancel()
	}
	clear(s.attending)
	s.mu.Unlock()
	s.running.Wait()
	s.each(func(listener *os.File, waiting int) error {
		if waiting == 0 {
			return nil
		}
		return s.refuser.takeBacklog(listener)
	})
	s.refuser.Shutdown(ctx)
	for _, g := range s.groups {
		g.Close()
	}
}

// Attend accepts connections from a listener, which it borrows, until ctx ends. Others may
// accept from it at the same time.
func (b *Balancer) Attend(ctx context.Context, listener *os.File) error {
	a, err := newAttendant(b, listener)
	if err != nil {
		return err
	}
	defer a.file.Close()
	return a.acceptUntil(ctx)
}

// takeBacklog accepts what waits in a listener's queue.
func (b *Balancer) takeBacklog(listener *os.File) error {
	a, err := newAttendant(b, listener)
	if err != nil {
		return err
	}
	defer a.file.Close()
	return a.takeBacklog()
}

// newAttendant makes an acceptor with a descriptor of its own for a listener.
func newAttendant(b *Balancer, listener *os.File) (*acceptor, error) {
	var file *os.File
	err := controlFile(listener, func(fd int) error {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			err = unix.SetNonblock(fd, true) // a worker may have made it otherwise
			file = os.NewFile(uintptr(fd), "attended listener")
		}
		return os.NewSyscallError("fcntl", err)
	})
	if err != nil {
		return nil, fmt.Errorf("master: %w", err)
	}
	return acceptFrom(b, file)
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
