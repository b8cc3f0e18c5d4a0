package worker

import (
	"net"
	"os"
	"slices"
	"sync"

	"github.com/handfast/handfast/fdpass"
)

// steeredSource accepts from the slot's own listeners, to which the kernel brings this
// slot's clients and no others (handfast run --route kernel). The mailbox says when that is
// over, and brings connections that others gave back.
//
// From ready on a goroutine receives from each, no more than one message ahead; they end
// with the mailbox.
type steeredSource struct {
	mailbox   *mailboxSource
	listeners []*tcpSource
	arrivals  chan arrivals // closed when all goroutines have ended
	stop      chan struct{} // closed when nobody receives any more
	running   sync.WaitGroup
	started   sync.Once

	mu     sync.Mutex
	unused []fdpass.Handoff // accepted when nobody received any more
}

// arrivals is what one receive brought.
type arrivals struct {
	conns []fdpass.Handoff
	err   error
}

// newSteeredSource takes ownership of the descriptors of listeners.
func newSteeredSource(mailbox *mailboxSource, listeners []fdpass.Handoff) *steeredSource {
	s := &steeredSource{mailbox: mailbox, arrivals: make(chan arrivals), stop: make(chan struct{})}
	for _, h := range listeners {
		s.listeners = append(s.listeners, &tcpSource{
			file:  os.NewFile(uintptr(h.FD), "slot's listener"),
			local: net.TCPAddrFromAddrPort(h.Client),
		})
	}
	return s
}

// ready begins to accept.
func (s *steeredSource) ready() error {
	s.started.Do(s.start)
	return s.mailbox.say(fdpass.TypeListen)
}

func (s *steeredSource) start() {
	for _, ln := range s.listeners {
		s.running.Go(func() { s.forward(ln); ln.file.Close() })
	}
	s.running.Go(func() { s.forward(s.mailbox); s.endAccepting() })
	go func() { s.running.Wait(); close(s.arrivals) }()
}

// forward passes on what one source brings, until that ends.
func (s *steeredSource) forward(from source) {
	var m fdpass.Message
	for {
		err := from.receive(&m)
		if err != nil && ended(err) {
			return
		}
		a := arrivals{err: err}
		if err == nil {
			a.conns = slices.Clone(m.Handoffs)
		}
		select {
		case s.arrivals <- a:
		case <-s.stop:
			s.mu.Lock()
			s.unused = append(s.unused, a.conns...)
			s.mu.Unlock()
			return
		}
	}
}

// endAccepting stops accepting, and does not shut the listeners down: they are not ours.
func (s *steeredSource) endAccepting() {
	for _, ln := range s.listeners {
		ln.interrupt()
	}
}

func (s *steeredSource) receive(m *fdpass.Message) error {
	a, ok := <-s.arrivals
	if !ok {
		return net.ErrClosed
	}
	m.Handoffs = append(m.Handoffs[:0], a.conns...)
	return a.err
}

// interrupt ends all goroutines, the one in receive too.
func (s *steeredSource) interrupt() {
	s.mailbox.interrupt()
	s.endAccepting()
	close(s.stop)
}

// close gives back what nobody has used.
func (s *steeredSource) close(unused []fdpass.Handoff) error {
	s.started.Do(s.start) // to end at once, and close the listeners
	s.running.Wait()
	return s.mailbox.close(append(slices.Clone(unused), s.unused...))
}

// addr is where the first listener listens.
func (s *steeredSource) addr() net.Addr { return s.listeners[0].local }
