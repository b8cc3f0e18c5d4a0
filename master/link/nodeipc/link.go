package nodeipc

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// window is how many connections may be sent and not acknowledged.
	window = 64
	// maxQueued is how many more may wait for that; beyond them Deliver says full.
	maxQueued = 64
	// pause is how long a worker is left alone that is at its limit of open files, or whose
	// server is at its maxConnections.
	pause = 100 * time.Millisecond
	// listenGrace is how long a program that says it is ready, or has had its first turn, may take
	// until it listens, with a host's name that needs a look-up, or handles messages, as an ES
	// module whose imports are read in further turns.
	listenGrace = 200 * time.Millisecond
	// reopen is how long a program that has closed its server has to listen again. Its
	// connections wait meanwhile.
	reopen = time.Second

	// binDelay is the time between two looks whether what a worker has sent was closed.
	binDelay = 50 * time.Millisecond

	firstInherited = 3 // the number of a child's first extra file (os/exec)
)

// Why a worker takes no more connections although its process lives.
var (
	// ErrHungUp: it closed its channel, as a process does that ends. It matches io.EOF.
	ErrHungUp error = hungUp{}
	// ErrAskedFor: it asked to be replaced, or disconnected.
	ErrAskedFor = errors.New("the worker disconnected")
	// ErrClosedServer: it closed the server that listened on the balancer's port.
	ErrClosedServer = errors.New("the worker closed its server")
	// ErrDoesNotRead: it asks and asks, and does not read the answers.
	ErrDoesNotRead = errors.New("the worker asks and does not read the answers")
)

type hungUp struct{}

func (hungUp) Error() string { return "the worker closed its channel" }
func (hungUp) Unwrap() error { return io.EOF }

// Link is the master's side of one worker's channel. It implements supervisor.Link and
// balancer.Worker. One goroutine receives from the worker, one sends what there was no room for,
// and from Drain on one waits until the worker has finished; Close ends them.
type Link struct {
	primary *Primary
	slot    int
	own     func(netip.AddrPort) *os.File // the worker's own listener on one of the balancer's addresses; nil: the master routes
	id      int64
	dialect Dialect // and what it comes to
	offer   offer
	channel *channel
	theirs  *os.File // until the worker has it

	ready chan struct{}
	left  chan struct{}
	full  chan struct{} // there is something to send, and no room
	ended chan struct{} // closed by Close
	gone  chan struct{} // the worker has closed its end
	done  sync.WaitGroup

	process  supervisor.Process // nil until Started
	draining sync.Once
	finished chan struct{}

	mu       sync.Mutex
	seq      int64
	text     []byte    // of the connection that is being sent
	servers  []server  // the worker's, that listen on the balancer's port
	shut     bool      // it had some, and may listen again (closes)
	pinged   bool      // its answer to a ping is awaited
	outbox   outbox    // messages that wait for room
	queue    []waiting // to be sent
	flight   []sent    // sent and not acknowledged, in that order
	answers  uint64    // about what was sent, that have come
	progress supervisor.Progress
	lost     []sent // shared listeners to be sent again after the pause
	paused   bool   // after a NACK, or a refusal, or while too many descriptors are in flight
	// inFlight tells that the last message could not be sent, since too many descriptors of this user are in flight.
	inFlight  bool
	stopped   bool // it gets no more connections: it drains, has left or ended
	drained   bool // it was told to, or told us so
	leaving   bool // it will be told when its last session has ended
	handsBack bool // it asked whether it is to hand connections back, and is
	missed    int  // messages of other workers that it missed, not reported yet
	leftErr   error
	refused   []packet // answers that wait until it is told to finish

	sessions map[clientip.Session]string // that it keeps, and their names
	warned   map[string]bool
}

// waiting is a connection that is to be sent.
type waiting struct {
	fdpass.Handoff
	refused time.Time // when the worker did not take it; zero: it was not asked, or has not answered
}

// sent is something with a descriptor, of which the worker's word is awaited.
type sent struct {
	seq     int64
	handoff waiting
	ping    bool     // not a connection but a ping
	file    *os.File // not a connection but a shared listener, and the answer that it rode on
	answer  reply
	taken   bool // the worker's Node has it; a server may still refuse it
	cluster bool
}

// Slot is the one that the worker was started for.
func (l *Link) Slot() int { return l.slot }

// Open makes a link for the worker of a slot. Where the kernel routes, own returns the worker's
// listener on one of the balancer's addresses, which is borrowed; nil: the master routes.
func (p *Primary) Open(slot int, own func(netip.AddrPort) *os.File) (*Link, error) {
	ours, theirs, err := pair()
	if err != nil {
		return nil, fmt.Errorf("opening a channel of Node: %w", err)
	}
	l := p.newLink(slot, own, p.lastID.Add(1), p.cfg.Dialect, ours)
	l.theirs = theirs
	l.start()
	return l, nil
}

// newLink makes a link at rest. It takes ownership of the channel.
func (p *Primary) newLink(slot int, own func(netip.AddrPort) *os.File, id int64, dialect Dialect, ours *channel) *Link {
	return &Link{
		primary: p,
		slot:    slot,
		own:     own,
		id:      id,
		dialect: dialect,
		offer:   dialect.offer(),
		channel: ours,
		ready:   make(chan struct{}),
		left:    make(chan struct{}),
		full:    make(chan struct{}, 1),
		ended:   make(chan struct{}),
		gone:    make(chan struct{}),

		finished: make(chan struct{}),
		sessions: make(map[clientip.Session]string),
		warned:   make(map[string]bool),
	}
}

func (l *Link) start() {
	l.done.Go(l.receive)
	l.done.Go(l.write)
}

// locked calls f under the lock of the link. Code that changes the link on its own initiative must run so: it holds
// reexec.Lock, too, as callers of the exported methods do.
func (l *Link) locked(f func()) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// after calls f after a while, locked. The link must show what f is to do, for Resume.
func (l *Link) after(d time.Duration, f func()) { time.AfterFunc(d, func() { l.locked(f) }) }

// Launch returns the command as it is: Node looks for its channel by itself.
func (l *Link) Launch(command []string) []string { return command }

// Ping implements supervisor.Link: it is false if the worker had been handed connections the last time, too, and not acknowledged all, and has
// said nothing of any since. Node acknowledges in its event loop; saying that it has enough is an answer, too.
func (l *Link) Ping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.progress.Note(len(l.flight) > 0, l.answers)
}

// Files returns the worker's end of the channel.
func (l *Link) Files() []*os.File { return []*os.File{l.theirs} }

// Env returns what Node looks for in a cluster worker, and what it loads.
func (l *Link) Env(get func(string) string) []string {
	return append(l.primary.cfg.Module.environ(get),
		"NODE_CHANNEL_FD="+strconv.Itoa(firstInherited),
		"NODE_CHANNEL_SERIALIZATION_MODE=json",
		"NODE_UNIQUE_ID="+strconv.FormatInt(l.id, 10),
	)
}

// Ready is closed when the worker takes connections. Ask when its process has started: it
// has its end of the channel then, and our copy is closed. Otherwise we would not see its
// end of file.
func (l *Link) Ready() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropTheirs()
	return l.ready
}

// Left is closed when the worker takes no more although its process may live on.
func (l *Link) Left() <-chan struct{} { return l.left }

// Err tells why it left. Ask only after Left is closed.
func (l *Link) Err() error { return l.leftErr }

// Deliver queues connections and takes ownership of the first n of conns.
func (l *Link) Deliver(conns []fdpass.Handoff) (n int, err error) {
	reexec.Lock.MustHold()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return 0, fdpass.ErrClosed
	}
	n = max(0, min(len(conns), maxQueued+window-len(l.queue)-len(l.flight)))
	for _, h := range conns[:n] {
		l.queue = append(l.queue, waiting{Handoff: h})
	}
	l.pump()
	switch {
	case n == len(conns):
		return n, nil
	case l.inFlight:
		return n, fdpass.ErrInFlight
	default:
		return n, fdpass.ErrFull
	}
}

// Drain tells the worker to finish, as recluster and Node's primary do. Connections that it was not
// sent go elsewhere. A worker that keeps sessions is told when the last one has ended:
// their requests come over new connections, which it could not get any more.
func (l *Link) Drain() {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sessions) > 0 && len(l.servers) == 0 && !l.leaving && !l.stopped && !l.primary.isStopping() {
		l.leaving = true
		return
	}
	l.finishDrain()
}

func (l *Link) finishDrain() {
	if !l.drained { // Node does not like to hear it twice
		l.drained = true
		for _, answer := range l.refused {
			l.post(answer)
		}
		l.refused = nil
		l.post(packet{text: []byte(`{"cmd":"disconnect"}` + "\n")})
		l.post(packet{text: line(map[string]any{"cmd": cmdCluster, "act": "disconnect", "seq": l.next()})})
	}
	l.stopFlow()
	l.draining.Do(func() { l.done.Go(l.awaitEnd) })
}

// Close ends the link, and gives back what the worker did not take. It may have said in the last moment
// what it has taken.
func (l *Link) Close() {
	close(l.ended)
	l.channel.interrupt()
	l.done.Wait()
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	l.channel.rest(l.handle)
	l.primary.relay.forget(l)
	l.channel.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outbox = outbox{}
	l.reportMissed()
	l.dropTheirs()
	l.stopFlow()
	l.takeBack()
}

func (l *Link) next() int64 { l.seq++; return l.seq }

// receive handles what the worker sends until it closes its end.
func (l *Link) receive() {
	var yielder yielder
	look := func() {
		if l.crowded() {
			yielder.yield()
		}
	}
	for {
		for l.channel.bin.Full() { // it sends what nobody wants
			select {
			case <-l.ended:
				return
			case <-time.After(binDelay):
			}
		}
		err := l.channel.receive(look, l.handle)
		if err == nil {
			continue
		}
		if err == errGone {
			return // and Close handles the rest
		}
		l.primary.relay.forget(l)
		l.locked(func() {
			l.leave(ErrHungUp)
			l.takeBack() // it cannot acknowledge any more
		})
		close(l.gone)
		return
	}
}

// crowded tells whether the worker has several connections to acknowledge.
func (l *Link) crowded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.flight) >= crowd
}

// dropTheirs closes our copy of the worker's end.
func (l *Link) dropTheirs() {
	if l.theirs != nil {
		l.theirs.Close()
		l.theirs = nil
	}
}

// maybeReady is called when the program says that it is ready, or its first turn is over. If it is about to listen
// we must know, for what is offered in the wrong way is lost; and so is a message for which there
// is no handler yet, since Node keeps none for a cluster worker.
func (l *Link) maybeReady(why ReadyWhen) {
	if len(l.servers) > 0 {
		l.readyBy(why)
		return
	}
	l.after(listenGrace, func() { l.readyBy(why) })
}

// readyBy notes something that may mean ready.
func (l *Link) readyBy(why ReadyWhen) {
	want := l.primary.cfg.ReadyWhen
	if want != why && (want != ReadyAuto || why == ReadyStarted) {
		return
	}
	select {
	case <-l.ready:
	default:
		close(l.ready)
	}
}

// leave notes that the worker takes no more, for the first reason there is.
func (l *Link) leave(why error) {
	if l.stopped {
		return
	}
	l.leftErr = why
	l.stopFlow()
	close(l.left)
}

// stopFlow gives back what was not sent.
func (l *Link) stopFlow() {
	l.stopped = true
	l.forgetSessions()
	var back []fdpass.Handoff
	for _, w := range l.queue {
		back = append(back, w.Handoff)
	}
	l.queue = nil
	l.giveBack(back)
}

// takeBack gives back what was sent and not acknowledged.
func (l *Link) takeBack() {
	var back []fdpass.Handoff
	for _, s := range l.flight {
		if s.file == nil && !s.ping {
			back = append(back, s.handoff.Handoff)
		}
	}
	l.flight = nil
	l.giveBack(back)
}

// giveBack is called under the lock: Readmit must not wait, since the balancer may deliver to this link.
func (l *Link) giveBack(conns []fdpass.Handoff) {
	if len(conns) > 0 {
		l.primary.cfg.Readmit(conns)
	}
}

// handleTaken notes that the worker's Node has the oldest descriptor that it had not. A program
// that only listens for messages has its connection then.
func (l *Link) handleTaken() {
	l.answers++
	for i := range l.flight {
		s := &l.flight[i]
		if s.taken {
			continue
		}
		if s.ping { // a descriptor that is another's, but it answers
			l.pong(i)
			return
		}
		s.taken = true
		if !s.cluster {
			l.finish(i)
		}
		return
	}
}

// handleLost notes that a message came without its descriptor, since the worker is at its limit of open
// files. It is sent again after a while.
func (l *Link) handleLost() {
	l.answers++
	for i := range l.flight {
		s := l.flight[i]
		if s.taken {
			continue
		}
		if s.ping {
			l.pong(i)
			return
		}
		l.flight = append(l.flight[:i], l.flight[i+1:]...)
		if s.file != nil {
			l.lost = append(l.lost, s)
			l.startPause()
			return
		}
		l.offerAgain(s.handoff)
		return
	}
}

// offerAgain sends a connection again after a pause, unless there is no more to be sent. One
// that the worker goes on refusing for as long as a connection may be parked is given up.
func (l *Link) offerAgain(w waiting) {
	if l.stopped {
		l.giveBack([]fdpass.Handoff{w.Handoff})
		return
	}
	if w.refused.IsZero() {
		w.refused = time.Now()
	}
	if time.Since(w.refused) >= l.primary.cfg.Patience {
		l.primary.cfg.GiveUp([]fdpass.Handoff{w.Handoff})
		return
	}
	l.queue = append([]waiting{w}, l.queue...)
	l.startPause()
}

// startPause leaves the worker alone for a while.
func (l *Link) startPause() {
	if !l.paused {
		l.paused = true
		l.after(pause, l.endPause)
	}
}

func (l *Link) endPause() {
	l.paused = false
	lost := l.lost
	l.lost = nil
	for _, s := range lost {
		l.sendShared(s.answer, s.file)
	}
	l.pump()
}

// acknowledged notes that a server took a connection, or refused it: it is at its maxConnections, or
// has just been closed.
func (l *Link) acknowledged(seq int64, accepted bool) {
	l.answers++
	for i := range l.flight {
		s := l.flight[i]
		if s.seq != seq || !s.cluster {
			continue
		}
		if accepted {
			l.finish(i)
			return
		}
		l.flight = append(l.flight[:i], l.flight[i+1:]...)
		l.offerAgain(s.handoff)
		return
	}
}

// finish closes our copy of what the worker has, and sends more.
func (l *Link) finish(i int) {
	if s := l.flight[i]; s.file == nil {
		fdpass.CloseConnections(s.handoff.FD)
	}
	l.flight = append(l.flight[:i], l.flight[i+1:]...)
	l.pump()
}
