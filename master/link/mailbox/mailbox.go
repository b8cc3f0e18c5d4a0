// Package mailbox is the native link between the master and one worker process:
// handoffs over a Unix socket, as package fdpass describes it.
//
// mailbox.go hands off and receives, handback.go takes connections back between two requests, passage.go has workers pass them to each other, ping.go asks whether the worker still takes connections, limit.go
// keeps to the connections that it may have open, and upgrade.go leaves a mailbox to another program (package reexec).
package mailbox

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// Reasons why a worker takes no more connections although its process lives.
var (
	// ErrLeft: it asked for that.
	ErrLeft = errors.New("the worker asked for no more connections")
	// ErrShutDown: it called shutdown(2) on its end, or sent an empty message.
	ErrShutDown = errors.New("the worker shut its mailbox down")
)

// firstInherited is the number under which a child sees its first extra file
// (os/exec, Cmd.ExtraFiles).
const firstInherited = 3

// Mailbox is the master's side of one worker's mailbox. It implements
// supervisor.Link and balancer.Copier.
//
// It owns both ends of the socketpair: the worker inherits a copy of its end,
// and ours is how we take back what a dead worker did not receive. One goroutine
// receives what the worker sends; Close ends it.
type Mailbox struct {
	ours   *fdpass.Conn
	theirs *fdpass.Conn
	file   *os.File // of theirs, for the child

	readmit func([]fdpass.Handoff)
	ready   chan struct{} // closed when the worker says so
	left    chan struct{} // closed when the worker takes no more
	leftErr error         // why; written by receive, before left is closed
	gaveUp  bool          // receive has ended for want of descriptors; written by receive, before ended is closed
	ended   chan struct{} // closed when receive has ended
	accepts bool          // the worker accepts from the slot's listeners; written before ready is closed
	offered bool          // it was offered them
	drained atomic.Bool   // the worker was sent end of file
	rescue  *time.Timer   // takes back what a worker that drains leaves lying
	closed  atomic.Bool   // Close was called
	report  atomic.Pointer[fdpass.Report]
	named   atomic.Int64 // when it said that more requests have named it, in nanoseconds since 1970; 0: never
	closing sync.Once

	requests Requests
	limited  bool         // the worker is held to requests.MaxConnections; written before ready is closed
	given    atomic.Int64 // connections that were handed off

	offersBack   bool         // the worker has said that it hands connections back; of receive
	handsBack    bool         // and the master takes them; written before ready is closed
	replaced     bool         // another worker has taken the slot over; of requests.Slots
	unsaid       bool         // it has not been told how many slots there are now; likewise
	rulesChanged bool         // since the worker was told how clients are recognised; written before receive
	has          atomic.Int64 // connections that were handed off and not handed back: at least as many as it has that no other one has passed to it

	offersPass bool       // the worker has said that it takes what others pass to it; of receive
	passes     bool       // and so it does; written before ready is closed
	passage    passage    // of requests.Slots
	taking     sync.Mutex // what is left in it

	answers    bool                // the worker answers the pings that are requested; written before ready is closed
	ponged     bool                // it has sent a pong; of receive
	owes       atomic.Bool         // it was sent a ping and has not answered
	alive      atomic.Bool         // there was a sign of it since the last Ping
	sent       atomic.Uint64       // messages with connections
	sentBefore uint64              // when there was no room for a ping; of Ping
	progress   supervisor.Progress // of a worker that does not answer; likewise
}

// Open makes a mailbox, and offers the worker the slot's listeners, if there are any.
// Open borrows them; Client is where each listens. Connections that come back, because the worker returned
// or never received them, are given to readmit, which takes ownership of their
// descriptors, must not keep the slice, and must not wait.
func Open(listeners []fdpass.Handoff, requests Requests, readmit func([]fdpass.Handoff)) (*Mailbox, error) {
	ours, file, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("opening a mailbox: %w", err)
	}
	theirs, err := fdpass.NewConn(file)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("opening a mailbox: %w", err)
	}
	m := newMailbox(ours, theirs, file, requests, readmit)
	if len(listeners) > 0 {
		m.offered = true
		if err := ours.TrySend(fdpass.TypeListen, listeners); err != nil {
			ours.Close()
			theirs.Close()
			return nil, fmt.Errorf("opening a mailbox: %w", err)
		}
	}
	go m.receive()
	return m, nil
}

func newMailbox(ours, theirs *fdpass.Conn, file *os.File, requests Requests, readmit func([]fdpass.Handoff)) *Mailbox {
	m := &Mailbox{
		requests: requests,
		ours:     ours,
		theirs:   theirs,
		file:     file,
		readmit:  readmit,
		ready:    make(chan struct{}),
		left:     make(chan struct{}),
		ended:    make(chan struct{}),
	}
	m.rescue = time.AfterFunc(never, m.takeBack)
	return m
}

// Launch returns the command as it is: the worker needs no preparation.
func (m *Mailbox) Launch(command []string) []string { return command }

// Started implements supervisor.Link. Which process the worker is makes no difference.
func (m *Mailbox) Started(supervisor.Process) {}

// DrainsGroup implements supervisor.Link: the process that has the mailbox is told, its children are not.
func (m *Mailbox) DrainsGroup() bool { return false }

// Finished implements supervisor.Link: a worker exits by itself when it has finished.
func (m *Mailbox) Finished() <-chan struct{} { return nil }

// Files returns what the worker inherits as descriptors 3 and up. The mailbox
// goes on owning it.
func (m *Mailbox) Files() []*os.File { return []*os.File{m.file} }

// Env returns what the worker finds in its environment.
func (m *Mailbox) Env(func(string) string) []string {
	pings := "0"
	if m.requests.Pings {
		pings = "1"
	}
	back := "0"
	if m.requests.HandBack != nil {
		back = "1"
	}
	return []string{
		fdpass.EnvFD + "=" + strconv.Itoa(firstInherited),
		fdpass.EnvReport + "=1",
		fdpass.EnvMaxConnections + "=" + strconv.Itoa(m.requests.MaxConnections),
		fdpass.EnvPing + "=" + pings,
		fdpass.EnvHandBack + "=" + back,
	}
}

// Report returns what the worker has last said of its connections, if it ever has. It is
// the worker's word and nothing more.
func (m *Mailbox) Report() (r fdpass.Report, ok bool) {
	if p := m.report.Load(); p != nil {
		return *p, true
	}
	return r, false
}

// Ready is closed when the worker has said that it takes connections.
func (m *Mailbox) Ready() <-chan struct{} { return m.ready }

// Accepts tells whether the worker accepts from the slot's listeners by itself, which it does
// from all or from none. Ask only after Ready is closed.
func (m *Mailbox) Accepts(netip.AddrPort) bool { return m.accepts }

// Left is closed when the worker takes no more connections although its process
// may live on: it asked for that, or it broke the protocol. Err says which.
func (m *Mailbox) Left() <-chan struct{} { return m.left }

// Err tells why the worker left. Ask only after Left is closed.
func (m *Mailbox) Err() error { return m.leftErr }

// Deliver queues connections and takes ownership of the first n of conns; the
// caller still owns the others. It never waits: err is fdpass.ErrFull when the
// worker does not keep up, fdpass.ErrClosed when it takes no more, fdpass.ErrLimit when it has enough.
func (m *Mailbox) Deliver(conns []fdpass.Handoff) (n int, err error) {
	n, err = m.Copy(conns)
	fdpass.CloseHandoffs(conns[:n])
	return n, err
}

// Copy is Deliver, except that it borrows conns. The messages hold references of their
// own; the caller closes the first n at once, since the client sees its connection end
// when the last copy is closed.
func (m *Mailbox) Copy(conns []fdpass.Handoff) (n int, err error) {
	reexec.Lock.MustHold()
	for n < len(conns) {
		batch := conns[n:][:fdpass.Fit(conns[n:])]
		if batch = batch[:m.charge(len(batch))]; len(batch) == 0 {
			return n, fdpass.ErrLimit
		}
		m.has.Add(int64(len(batch)))
		if s := m.requests.Slots; s != nil && s.Passes {
			s.given.Add(int64(len(batch)))
		}
		if err := m.ours.TrySend(fdpass.TypeHandoff, batch); err != nil {
			m.refund(len(batch))
			m.has.Add(-int64(len(batch)))
			if errors.Is(err, fdpass.ErrClosed) && !m.drained.Load() {
				m.theirs.CloseWrite() // the worker shut its end down: listen sees to it
			}
			return n, err
		}
		m.sent.Add(1)
		n += len(batch)
	}
	return n, nil
}

// Drain sends the worker end of file behind what is queued. Connections that it has not
// received after a while, because it is stalled, are taken back: its successor can
// serve them.
func (m *Mailbox) Drain() {
	m.endFlow()
	if !m.closed.Load() {
		m.rescue.Reset(rescueDelay)
	}
}

// Close ends the link and takes back what the worker did not receive. Call it
// when the worker's process has ended, or was never started.
func (m *Mailbox) Close() {
	m.closing.Do(func() {
		m.closed.Store(true)
		if m.Looks() {
			m.requests.Slots.remove(m)
		}
		m.rescue.Stop()
		m.endFlow()
		m.takeBack()
		m.theirs.CloseWrite() // receive ends, but first handles what the worker had sent
		<-m.ended
		if m.gaveUp { // what it has not received the kernel closes now, and that may wait
			go m.ours.Close()
		} else {
			m.ours.Close()
		}
		m.theirs.Close()
	})
}

const (
	// rescueDelay is how long a worker that drains has to receive what is queued.
	rescueDelay = time.Second
	// never is when a timer fires that is not wanted.
	never = 100 * 365 * 24 * time.Hour
	// noFilesDelay is the time between two looks for free descriptors. Parked
	// connections give theirs back when their patience is over.
	noFilesDelay = 50 * time.Millisecond
	// lastTries is how often, in the end, a worker's last message is tried again for want of descriptors.
	lastTries = 100
)

// endFlow sends end of file.
func (m *Mailbox) endFlow() {
	m.drained.Store(true)
	m.ours.CloseWrite()
	m.endPassage()
}

// takeBack empties the mailbox and the passage from the worker's end. Our end is shut down, so the
// last message is followed by end of file and nothing here waits, except for
// descriptors: what is still queued needs none, but a successor does.
func (m *Mailbox) takeBack() {
	m.empty(m.theirs, math.MaxInt, func(msg *fdpass.Message) {
		if msg.Type == fdpass.TypeHandoff {
			m.has.Add(-int64(len(msg.Handoffs)))
			m.readmit(msg.Handoffs)
		} else { // the slot's listeners, or ends of passages
			fdpass.CloseHandoffs(msg.Handoffs)
		}
	})
	m.takePassed()
}

// empty takes what the worker did not receive, until end of file. It returns false if it has given up: it waits so often for what is there to fit,
// or for what nobody wants to be closed.
func (m *Mailbox) empty(from *fdpass.Conn, tries int, take func(*fdpass.Message)) bool {
	var msg fdpass.Message
	for tries > 0 {
		for fdlimit.Scarce() {
			time.Sleep(noFilesDelay)
		}
		err := from.ReceiveLocked(&msg, reexec.Lock.RLocker())
		if err == nil {
			take(&msg)
		}
		reexec.Lock.RUnlock()
		switch {
		case errors.Is(err, fdpass.ErrNoFiles) || from.Full():
			time.Sleep(noFilesDelay)
			tries--
		case err != nil && !errors.Is(err, fdpass.ErrMalformed):
			return true
		}
	}
	return false
}

// receive handles what the worker sends until its end is shut down.
func (m *Mailbox) receive() {
	defer close(m.ended)
	var msg fdpass.Message
	for tries := 0; ; {
		err := m.ours.ReceiveLocked(&msg, reexec.Lock.RLocker())
		left, over := m.received(&msg, err)
		reexec.Lock.RUnlock()
		if left {
			m.takeBack()
			close(m.left)
		}
		if over {
			return
		}
		if errors.Is(err, fdpass.ErrNoFiles) {
			time.Sleep(noFilesDelay)
			if m.closed.Load() {
				tries++
			}
			if m.gaveUp = tries == lastTries; m.gaveUp {
				return
			}
		}
		for m.ours.Full() && !m.closed.Load() { // it sends what nobody wants
			time.Sleep(noFilesDelay)
		}
	}
}

// received handles what Receive returned. It tells whether the worker has just left, and whether no
// more is to be received.
func (m *Mailbox) received(msg *fdpass.Message, err error) (left, over bool) {
	switch {
	case errors.Is(err, fdpass.ErrNoFiles):
		return false, false
	case err != nil && m.closed.Load():
		return false, true
	}
	// We hold the worker's end open, so this end of file is no exit.
	over = err != nil && !errors.Is(err, fdpass.ErrMalformed)
	if errors.Is(err, io.EOF) {
		err = ErrShutDown
	}
	if err == nil {
		err = m.handle(msg)
	}
	return err != nil && m.leave(err), over
}

// handle does what one message asks for. An error ends the link.
func (m *Mailbox) handle(msg *fdpass.Message) error {
	switch msg.Type {
	case fdpass.TypeReady:
		m.setReady(false)
	case fdpass.TypeListen:
		if !m.offered || len(msg.Handoffs) > 0 {
			m.ours.Discard(msg.Handoffs)
			return fmt.Errorf("%w: a listen that answers none", fdpass.ErrMalformed)
		}
		m.setReady(true)
	case fdpass.TypeReport:
		m.handleReport(msg.Report)
	case fdpass.TypePong:
		m.handlePong()
	case fdpass.TypeHandBack:
		return m.handleHandBack(msg.Handoffs)
	case fdpass.TypePass:
		return m.handlePassed(msg.Handoffs)
	case fdpass.TypeLeave:
		return ErrLeft
	case fdpass.TypeReturn:
		if !m.drained.Load() { // it could return what it is given, for ever
			m.ours.Discard(msg.Handoffs)
			return fmt.Errorf("%w: a return before a leave", fdpass.ErrMalformed)
		}
		for i, h := range msg.Handoffs {
			if err := checkConnection(h.FD); err != nil {
				m.ours.Discard(msg.Handoffs[i:])
				m.readmit(msg.Handoffs[:i])
				return err
			}
		}
		m.readmit(msg.Handoffs)
	case fdpass.TypeHandoff, fdpass.TypePing, fdpass.TypeSlots:
		m.ours.Discard(msg.Handoffs)
		return fmt.Errorf("%w: a %v from a worker", fdpass.ErrMalformed, msg.Type)
	default: // of a later version
		m.ours.Discard(msg.Handoffs)
	}
	return nil
}

func (m *Mailbox) setReady(listens bool) {
	select {
	case <-m.ready: // said twice
	default:
		m.accepts = listens
		m.limited = m.requests.MaxConnections > 0 && m.report.Load() != nil
		m.answers = m.requests.Pings && m.ponged
		m.handsBack = m.requests.HandBack != nil && m.offersBack
		m.passes = m.handsBack && m.offersPass
		m.beginHandBack()
		m.alive.Store(true)
		close(m.ready)
	}
}

// leave ends the flow to the worker, for the first reason there is. A worker that
// broke the protocol is not listened to any more either. It returns false if there was a reason before;
// else the caller takes back what the worker has not received, and closes left.
func (m *Mailbox) leave(why error) bool {
	if why != ErrLeft {
		m.theirs.CloseWrite()
	}
	if m.leftErr != nil {
		return false
	}
	m.leftErr = why
	m.endFlow()
	return true
}

// checkConnection refuses what is neither a TCP connection nor one of a Unix socket, and makes it non-blocking
// in case the worker had made it otherwise.
func checkConnection(fd int) error {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP && sock.Name(fd) == "" {
		return fmt.Errorf("%w: a descriptor that was returned is neither a TCP connection nor one of a Unix socket that is bound", fdpass.ErrMalformed)
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens != 0 {
		return fmt.Errorf("%w: a descriptor that was returned is a listener", fdpass.ErrMalformed)
	}
	return unix.SetNonblock(fd, true)
}
