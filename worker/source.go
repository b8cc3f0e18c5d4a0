package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// source is where a Listener's connections come from.
type source interface {
	// ready says that connections are welcome from now on.
	ready() error
	// receive waits for connections, which the caller owns, or for a ping, which the caller
	// answers. io.EOF means that no more will come, os.ErrDeadlineExceeded that
	// the source was interrupted.
	receive(m *fdpass.Message) error
	// pong answers a ping. It does not wait.
	pong()
	// interrupt makes receive return, now and from now on.
	interrupt()
	// close ends the source and takes ownership of connections that were received
	// but not used. Nobody is in receive any more.
	close(unused []fdpass.Handoff) error
	addr() net.Addr
}

const (
	// pongDelay is the time between two tries to answer a ping.
	pongDelay = 100 * time.Millisecond
	// sayTries is how often the master is told that connections are welcome if it does not keep up, sayPause apart.
	sayTries = 3000
	sayPause = 10 * time.Millisecond
)

// mailboxSource receives what a master hands off.
type mailboxSource struct {
	conn  *fdpass.Conn
	pings bool // the master sends some
	back  *handBack
	local *net.TCPAddr
}

// newMailboxSource takes ownership of the worker's end of a mailbox.
func newMailboxSource(file *os.File, back *handBack) (source, error) {
	conn, err := fdpass.NewWorkerConn(file)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	// The zero address if it does not parse: a master of an earlier version does not say it.
	first, _ := netip.ParseAddrPort(os.Getenv(fdpass.EnvAddress))
	s := &mailboxSource{conn: conn, pings: os.Getenv(fdpass.EnvPing) == "1", back: back, local: net.TCPAddrFromAddrPort(first)}
	if conn.Next() != fdpass.TypeListen {
		return s, nil
	}
	var m fdpass.Message
	err = conn.Receive(&m)
	if err == nil && len(m.Handoffs) == 0 {
		err = os.NewSyscallError("recvmsg", unix.EMFILE) // they were lost (MSG_CTRUNC)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("worker: %w", err)
	}
	return newSlotListeners(s, m.Handoffs), nil
}

// duplicateMailbox borrows the worker's end of a mailbox. What it returns is the caller's, and outlives it.
func duplicateMailbox(mailbox *os.File) (*fdpass.Conn, error) {
	dup, err := sock.Duplicate(mailbox)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	conn, err := fdpass.NewConn(os.NewFile(uintptr(dup), "handfast mailbox"))
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	return conn, nil
}

func (s *mailboxSource) ready() error { return s.begin(fdpass.TypeReady) }

// begin says by t that connections are welcome, and before that pings are answered and connections handed back and passed.
func (s *mailboxSource) begin(t fdpass.Type) error {
	if s.pings {
		s.pong()
	}
	if s.back != nil {
		if err := errors.Join(s.say(fdpass.TypeHandBack), s.say(fdpass.TypePass)); err != nil {
			return err
		}
	}
	return s.say(t)
}

func (s *mailboxSource) say(t fdpass.Type) (err error) {
	for range sayTries {
		if err = s.conn.TrySend(t, nil); !errors.Is(err, fdpass.ErrFull) {
			break
		}
		time.Sleep(sayPause)
	}
	if errors.Is(err, fdpass.ErrClosed) {
		return nil // the master is gone: receive tells
	}
	return err
}

func (s *mailboxSource) receive(m *fdpass.Message) error {
	for {
		err := s.conn.Receive(m)
		switch {
		case errors.Is(err, fdpass.ErrNoFiles), m.Type == fdpass.TypeHandoff && m.Lost > 0 && len(m.Handoffs) == 0:
			if s.pings {
				s.pong() // in case that a ping lies behind it
			}
			// As accept(2) says in the same case; servers wait and try again.
			return os.NewSyscallError("recvmsg", unix.EMFILE)
		case err != nil:
			return err
		case m.Type == fdpass.TypePing:
			return nil
		case m.Type == fdpass.TypeHandoff && len(m.Handoffs) > 0:
			return nil
		case m.Type == fdpass.TypeSlots:
			s.back.resize(m.Slots, m.Replaced)
		case m.Type == fdpass.TypePass:
			err := s.back.setPassages(m)
			if m.Handoffs = m.Handoffs[:0]; err != nil {
				return err
			}
		}
		fdpass.CloseHandoffs(m.Handoffs) // of a type that this version does not know
	}
}

// pong is sent later if there is no room for it: a master that does not read may be asleep.
func (s *mailboxSource) pong() {
	if err := s.conn.TrySend(fdpass.TypePong, nil); errors.Is(err, fdpass.ErrFull) {
		time.AfterFunc(pongDelay, s.pong)
	}
}

func (s *mailboxSource) interrupt() { s.conn.SetReceiveDeadline(time.Unix(1, 0)) }

// close leaves, and gives back what is unused: the master finds another worker
// for it. It does not wait, since the master hears everything at once.
func (s *mailboxSource) close(unused []fdpass.Handoff) error {
	defer fdpass.CloseHandoffs(unused) // ours; the message has copies
	err := s.conn.TrySend(fdpass.TypeLeave, nil)
	for batch := range slices.Chunk(unused, fdpass.MaxBatch) {
		if err == nil {
			err = s.conn.TrySend(fdpass.TypeReturn, batch)
		}
	}
	if errors.Is(err, fdpass.ErrClosed) {
		err = nil // the master has gone before us
	}
	return errors.Join(err, s.conn.Close())
}

// addr is the first of the master's addresses: those of connections may be others.
func (s *mailboxSource) addr() net.Addr { return s.local }

// tcpSource accepts from a listening socket of this process, when there is no
// master. The socket is a file because a net.Listener gives no access to the
// connections' own descriptors.
type tcpSource struct {
	file  *os.File
	local net.Addr
}

func newTCPSource(address string) (*tcpSource, error) {
	config := fdpass.ListenConfig()
	ln, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	defer ln.Close() // the file is a duplicate
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	return &tcpSource{file: file, local: ln.Addr()}, nil
}

func (s *tcpSource) ready() error { return nil }
func (s *tcpSource) pong()        {}

func (s *tcpSource) receive(m *fdpass.Message) error {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	var h fdpass.Handoff
	var acceptErr error
	err = raw.Read(func(listener uintptr) bool {
		for {
			h.FD, h.Client, acceptErr = sock.Accept(int(listener))
			// Neither says that nobody else waits, so the poller is not asked.
			if acceptErr != unix.EINTR && acceptErr != unix.ECONNABORTED {
				return acceptErr != unix.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return err
	case acceptErr != nil:
		return os.NewSyscallError("accept4", acceptErr)
	}
	*m = fdpass.Message{Type: fdpass.TypeHandoff, Handoffs: append(m.Handoffs[:0], h)}
	return nil
}

func (s *tcpSource) interrupt() { s.file.SetReadDeadline(time.Unix(1, 0)) }

func (s *tcpSource) close(unused []fdpass.Handoff) error {
	fdpass.CloseHandoffs(unused)
	return s.file.Close()
}

func (s *tcpSource) addr() net.Addr { return s.local }

// ended tells whether a source will give no more: the master has ended the flow,
// or this end was closed or interrupted.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, fdpass.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
}
