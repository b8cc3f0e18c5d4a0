package worker

import (
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// slotListeners is a source that accepts from the slot's own listeners, to which the kernel
// brings this slot's clients and no others (handfast run --route kernel). The mailbox says
// when that is over, and brings connections that other workers gave back.
//
// The goroutine that receives accepts from the first listener itself. A goroutine for each
// other listener, and one for the mailbox, takes one message ahead and interrupts that
// accept. They run from ready on and end with the mailbox.
type slotListeners struct {
	mailbox *mailboxSource
	first   *tcpSource
	others  []*tcpSource
	started sync.Once
	running sync.WaitGroup

	aside   chan arrivals // from all sources but the first listener; closed at the end
	pending atomic.Int64  // number of arrivals that are in aside, or are about to be; the end is one
	woken   bool          // the accept was interrupted; only receive uses it

	stop   chan struct{} // closed when receive is called no more
	mu     sync.Mutex
	unused []fdpass.Handoff // came too late for receive
}

// arrivals is what one receive brought.
type arrivals struct {
	typ   fdpass.Type
	conns []fdpass.Handoff
	err   error
}

// newSlotListeners takes ownership of the descriptors of listeners, one at least.
func newSlotListeners(mailbox *mailboxSource, listeners []fdpass.Handoff) *slotListeners {
	s := &slotListeners{mailbox: mailbox, aside: make(chan arrivals), stop: make(chan struct{})}
	for _, h := range listeners {
		unix.SetNonblock(h.FD, true) // to wait in the poller, whatever a predecessor has set
		s.others = append(s.others, &tcpSource{
			file:  os.NewFile(uintptr(h.FD), "slot's listener"),
			local: net.TCPAddrFromAddrPort(h.Client),
		})
	}
	s.first, s.others = s.others[0], s.others[1:]
	return s
}

func (s *slotListeners) pong() { s.mailbox.pong() }

// ready begins to accept.
func (s *slotListeners) ready() error {
	s.started.Do(s.start)
	return s.mailbox.begin(fdpass.TypeListen)
}

func (s *slotListeners) start() {
	for _, ln := range s.others {
		s.running.Go(func() { s.forward(ln); ln.file.Close() })
	}
	s.running.Go(func() {
		s.forward(s.mailbox)
		for _, ln := range s.others {
			ln.interrupt()
		}
	})
	go s.finish()
}

// finish ends receiving when the mailbox has ended. The listeners are closed, not shut
// down: they are not ours.
func (s *slotListeners) finish() {
	s.running.Wait()
	s.pending.Add(1)
	s.first.file.Close()
	close(s.aside)
}

// forward passes on what one source brings, until that ends.
func (s *slotListeners) forward(from source) {
	var m fdpass.Message
	for {
		err := from.receive(&m)
		if err != nil && ended(err) {
			return
		}
		a := arrivals{err: err}
		if err == nil {
			a.typ, a.conns = m.Type, slices.Clone(m.Handoffs)
		}
		s.pending.Add(1)
		s.first.interrupt()
		select {
		case s.aside <- a:
		case <-s.stop:
			s.mu.Lock()
			s.unused = append(s.unused, a.conns...)
			s.mu.Unlock()
			return
		}
	}
}

// receive accepts, unless something else is pending. A goroutine that adds to pending
// interrupts the accept afterwards, so an interruption is forgotten only before looking again.
func (s *slotListeners) receive(m *fdpass.Message) error {
	for {
		if s.woken && s.pending.Load() == 0 {
			s.woken = false
			s.first.file.SetReadDeadline(time.Time{})
		}
		if s.pending.Load() > 0 {
			a, ok := <-s.aside
			if !ok {
				return net.ErrClosed
			}
			s.pending.Add(-1)
			*m = fdpass.Message{Type: a.typ, Handoffs: append(m.Handoffs[:0], a.conns...)}
			return a.err
		}
		err := s.first.receive(m)
		if err == nil || s.pending.Load() == 0 && !ended(err) {
			return err
		}
		s.woken = true
	}
}

// interrupt ends all goroutines, and with them receive.
func (s *slotListeners) interrupt() {
	s.started.Do(s.start)
	close(s.stop)
	s.mailbox.interrupt()
	for _, ln := range s.others {
		ln.interrupt()
	}
}

// close gives back the connections that were not accepted.
func (s *slotListeners) close(unused []fdpass.Handoff) error {
	for a := range s.aside { // until all have ended
		unused = append(unused, a.conns...)
	}
	return s.mailbox.close(slices.Concat(unused, s.unused))
}

// addr is where the first listener listens.
func (s *slotListeners) addr() net.Addr { return s.first.local }
