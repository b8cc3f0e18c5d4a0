package worker

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// ErrAlone: there is no master, and no address was given to listen on without
// one.
var ErrAlone = errors.New("worker: no mailbox (HANDFAST_FD), and no address to listen on alone; run it as: handfast run --worker-link native -- PROGRAM")

// Config says where connections come from. The zero value takes them from the
// master only.
type Config struct {
	// Address to listen on when this process was not started by handfast, as in
	// net.Listen; empty: Listen then fails with ErrAlone.
	Address string
	// ManualReady leaves it to the program to call Ready. Otherwise the first
	// Accept does.
	ManualReady bool
	// Mailbox is the worker's end of a mailbox, for tests and for programs that
	// get it in their own way. Listen takes ownership. nil: HANDFAST_FD.
	Mailbox *os.File
}

// Listener accepts connections. Its methods may be called at the same time.
type Listener struct {
	source      source
	manualReady bool
	readyOnce   sync.Once
	readyErr    error

	accepting sync.Mutex
	message   fdpass.Message
	queue     []fdpass.Handoff // the part of message that was not accepted yet

	mu       sync.Mutex
	open     int           // accepted connections that are not closed
	accepted uint64        // since the start
	reporter *reporter     // nil: nobody wants to know
	back     *handBack     // nil: nobody takes connections back
	spread   *spread       // nil: what is open when the time is over ends at once
	draining chan struct{} // closed when no more will come
	idle     chan struct{} // closed when, after that, open is 0
	closed   sync.Once
	closeErr error
}

// Listen returns a listener for the connections that the master hands to this
// process, or one on address when this process was not started by handfast.
func Listen(address string) (*Listener, error) {
	return Config{Address: address}.Listen()
}

// Listen returns a listener. A process has one mailbox, so only its first
// listener gets it.
func (c Config) Listen() (*Listener, error) {
	source, reporter, back, err := c.source()
	if err != nil {
		return nil, err
	}
	l := &Listener{
		source:      source,
		reporter:    reporter,
		back:        back,
		spread:      newSpread(),
		manualReady: c.ManualReady,
		draining:    make(chan struct{}),
		idle:        make(chan struct{}),
	}
	if back != nil {
		back.listener = l
	}
	if back != nil && reporter != nil {
		back.reportSoon = func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.reportSoon()
		}
	}
	return l, nil
}

func (c Config) source() (s source, r *reporter, back *handBack, err error) {
	mailbox := c.Mailbox
	if mailbox == nil {
		if mailbox, err = inheritedMailbox(); err != nil {
			return nil, nil, nil, err
		}
	}
	switch {
	case mailbox != nil:
		if r, err = newReporter(mailbox); err != nil {
			mailbox.Close()
			return nil, nil, nil, err
		}
		if back, err = newHandBack(mailbox); err != nil {
			mailbox.Close()
			r.close()
			return nil, nil, nil, err
		}
		if s, err = newMailboxSource(mailbox, back); err != nil {
			r.close()
			back.close()
		}
	case c.Address != "":
		s, err = newTCPSource(c.Address)
	default:
		err = ErrAlone
	}
	return s, r, back, err
}

// Ready tells the master to hand connections to this worker. Without it, unless
// Config.ManualReady is set, the first Accept does.
func (l *Listener) Ready() error {
	l.readyOnce.Do(func() {
		l.mu.Lock()
		l.reportNow() // that there is nothing yet
		l.mu.Unlock()
		l.readyErr = l.source.ready()
	})
	return l.readyErr
}

// Accept waits for a connection; it is a *Conn. It also answers the master's question whether
// connections are taken (handfast run --watchdog), so a program that does not call it for
// long, although it has not closed the listener, is taken for hung. The error matches net.ErrClosed
// when the listener was closed, or when the worker is to drain and has accepted
// all that was handed to it. At the limit of open files it is a temporary one, as
// an ordinary listener's, and the connection is not lost. Any other error, such as
// a message that does not follow the protocol, begins a drain too.
func (l *Listener) Accept() (net.Conn, error) {
	if !l.manualReady {
		if err := l.Ready(); err != nil {
			return nil, l.acceptError(err)
		}
	}
	for {
		h, err := l.next()
		if err != nil {
			return nil, l.acceptError(err)
		}
		if !l.back.takeReturned(h, false) {
			c := newConn(l, h)
			l.spread.add(c)
			return c, nil
		}
	}
}

func (l *Listener) acceptError(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: err}
}

// next takes the first connection of the queue, and fills the queue when it is
// empty. It does so only then: what is in the mailbox can still be given to
// another worker if this process dies, what is in the queue dies with it.
func (l *Listener) next() (fdpass.Handoff, error) {
	l.accepting.Lock()
	defer l.accepting.Unlock()
	for len(l.queue) == 0 {
		select {
		case <-l.draining:
			return fdpass.Handoff{}, net.ErrClosed
		default:
		}
		err := l.source.receive(&l.message)
		l.lost(l.message.Lost)
		switch {
		case err != nil:
			return fdpass.Handoff{}, l.failed(err)
		case l.message.Type == fdpass.TypePing:
			l.source.pong() // from here, since it says that somebody accepts
		}
		l.queue = l.message.Handoffs
	}
	h := l.queue[0]
	l.queue = l.queue[1:]
	l.count(1)
	return h, nil
}

// failed begins a drain unless what failed to receive can succeed later.
func (l *Listener) failed(err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return err
	}
	l.drain()
	if errors.Is(err, io.EOF) {
		l.back.drain()
	}
	if ended(err) {
		return net.ErrClosed
	}
	return err
}

// Close stops accepting. The master gives what was handed off but not accepted to
// another worker. Accepted connections stay open.
func (l *Listener) Close() error {
	l.closed.Do(func() {
		l.source.interrupt()
		l.accepting.Lock()
		defer l.accepting.Unlock()
		l.drain()
		l.closeErr = l.source.close(l.queue)
		l.back.drain() // behind what says that we leave
		l.queue = nil
	})
	return l.closeErr
}

// Addr returns the address that the listener was opened on, a *net.TCPAddr. With a master
// it is the first one that the master listens on, by whichever route: connections come from
// all of them, and each knows its own local address. Only a master that does not say it
// (an earlier version, or one in memory, as of package workertest) leaves it zero.
func (l *Listener) Addr() net.Addr { return l.source.addr() }

// Draining is closed when no more connections will be accepted: because the
// master said so, because it is gone, or because of Close.
func (l *Listener) Draining() <-chan struct{} { return l.draining }

// Open returns the number of accepted connections that are not closed.
func (l *Listener) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// Wait waits until the listener is draining and all connections that it accepted
// are closed, or returns the reason why ctx ended before.
func (l *Listener) Wait(ctx context.Context) error {
	select {
	case <-l.idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// drain says that nothing more will come.
func (l *Listener) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.draining:
		return
	default:
	}
	close(l.draining)
	if l.open == 0 {
		l.end()
	} else {
		l.spread.begin(l.back.since(), l.idle)
	}
}

// count changes the number of open connections: by 1, one was accepted, or by -1.
func (l *Listener) count(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open += n
	if n > 0 {
		l.accepted++
	}
	l.reportSoon()
	if l.open > 0 {
		return
	}
	select {
	case <-l.draining:
		l.end() // once: nothing is accepted after draining began
	default:
	}
}

// lost counts connections whose descriptors did not arrive: they are closed.
func (l *Listener) lost(n int) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted += uint64(n)
	l.reportSoon()
}

// end says that the last connection is closed, and that no other will come.
func (l *Listener) end() {
	close(l.idle)
	l.reporter.close()
	l.back.close()
}
