package worker

import (
	"errors"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/forwarded"
)

// look looks at the head of each further request on a connection of a proxy, without taking it, and hands the connection back if
// that belongs to another slot. It belongs to the connection; its methods are called by the one goroutine that reads.
//
// A request that stays costs one system call more than its reads (MSG_PEEK), and no allocation: what was peeked is in the
// reader's buffer, and is then dropped from the socket without being copied again (MSG_TRUNC, man 7 tcp; a Unix socket has no such
// thing, and is read once more).
//
// Package http reads ahead: while a handler runs it reads one byte of the next request, into a buffer of that length, to see
// whether the client has gone. That byte is lent: it stays in the socket until the next read. And it may have read more than a
// request, which its buffer shows: the first read of a connection offers the whole of it, and a later one what is not
// filled. If more is in the buffer than the lent byte, the next request stays.
type look struct {
	conn *Conn
	back *handBack
	peek func(fd uintptr) (done bool) // into buffer, once
	drop func(fd uintptr)             // n bytes
	send func(fd uintptr)             // what is given
	http bool                         // its server is package http's

	judged bool        // the request that is being read was looked at, or the master has just placed it
	passed bool        // it has come back from another worker, straight
	whole  int         // length of the reader's buffer; 0: nothing was read yet
	lent   atomic.Bool // the socket's first byte was given, and is still there
	buffer []byte
	n      int
	given  [1]fdpass.Handoff
	to     int   // the slot whose worker it may be passed to, or anyone
	err    error // of peek, drop and send

	expecting atomic.Bool // all requests that were read are answered
	served    atomic.Bool // it has brought a request of HTTP/1
	over      atomic.Bool // no further request is looked at: it speaks something else, is hijacked, or could not be handed back
	waiting   atomic.Bool // for the next request

	cookie   uint64              // of its socket, once it was away
	since    time.Time           // it is away
	isAway   bool                // it is handed back, and may come back
	returned chan fdpass.Handoff // what has come back, which the receiver owns, or that it does not: FD is negative
}

// headBuffers are of *[]byte, for heads that are longer than the reader's buffer, or begin with a lent byte. They hold what a
// socket can have received without being read (net.ipv4.tcp_rmem).
var headBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// newLook returns nil if connections like this one are not looked at.
func newLook(c *Conn, back *handBack) *look {
	if !back.looksAt(c.local, c.source()) {
		return nil
	}
	l := &look{conn: c, back: back, judged: true}
	l.peek, l.drop, l.send = l.peekOnce, l.dropAll, l.sendBack
	l.expecting.Store(c.flags&fdpass.FlagUnplaced != 0)
	back.add(l)
	return l
}

// ExpectRequest says that all requests that were read from a connection are answered, and that nothing was read behind them. The
// next Read then looks at the head of the next request before it takes it. If that belongs to another
// slot, or the worker drains, it hands the connection back to the master, or to that slot's worker, closes it here, and returns io.EOF. If an
// http.Server reads, it first waits a while whether the connection comes back, and then returns its request.
//
// A server calls it after each answer, if the connection is to stay open. Serve and KeepClientsApart do so for an
// http.Server. It changes nothing unless a proxy that the master trusts is at the other end.
func (c *Conn) ExpectRequest() {
	if c.look != nil {
		c.look.expecting.Store(!c.look.over.Load())
	}
}

// read is Read of a connection that is looked at.
func (l *look) read(b []byte) (n int, err error) {
	if l.whole == 0 {
		l.whole = len(b)
	}
	switch {
	case l.expecting.Load() && l.holdsNothing(len(b)):
		return l.readNext(b)
	case l.http && !l.over.Load() && len(b) == 1:
		return l.lend(b)
	}
	l.expecting.Store(false)
	l.takeLent()
	return l.conn.socket.Load().Read(b)
}

// holdsNothing tells whether a reader that offers so much of its buffer holds no byte but the lent one.
func (l *look) holdsNothing(free int) bool {
	held := 0
	if l.lent.Load() {
		held = 1
	}
	return !l.http || l.whole-free == held
}

// lend reads one byte and leaves it in the socket.
func (l *look) lend(b []byte) (int, error) {
	l.takeLent()
	n, err := l.await(b)
	l.lent.Store(n == 1)
	return n, err
}

// takeLent takes the lent byte from the socket.
func (l *look) takeLent() {
	if l.lent.CompareAndSwap(true, false) {
		l.take(1)
	}
}

// readNext reads the beginning of the next request, or hands the connection back.
func (l *look) readNext(b []byte) (n int, err error) {
	again := true
	for again {
		n, again, err = l.readOnce(b)
	}
	return n, err
}

// readOnce is readNext. It tells whether the connection has come back with a request that nobody but another worker has looked at.
func (l *look) readOnce(b []byte) (n int, again bool, err error) {
	buffer := b
	if l.lent.Load() {
		long := headBuffers.Get().(*[]byte)
		defer headBuffers.Put(long)
		buffer = *long
	}
	if n, err = l.awaitNext(buffer); err != nil {
		return 0, false, err
	}
	l.expecting.Store(false)
	at, slot := l.belongs(buffer[:n], n == len(buffer))
	if at == elsewhere && l.give(slot) {
		switch {
		case !l.awaitReturn():
			return 0, false, io.EOF
		case l.passed:
			return 0, true, nil
		}
		n, err = l.conn.socket.Load().Read(b)
		return n, false, err
	}
	l.judged, l.passed = at == here, false
	if l.lent.Load() {
		l.takeLent()
		n, err = l.conn.socket.Load().Read(b)
		return n, false, err
	}
	return n, false, l.take(n)
}

// awaitNext waits for the next request, unless the worker drains: then it hands the connection back, and says io.EOF.
func (l *look) awaitNext(buffer []byte) (n int, err error) {
	l.waiting.Store(true)
	if !l.back.drains() {
		n, err = l.await(buffer)
	}
	l.waiting.Store(false)
	if !l.back.draining.Load() {
		return n, err
	}
	l.back.behindDrain()
	l.conn.socket.Load().SetReadDeadline(time.Time{}) // by which drain may have interrupted await
	switch {
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		return n, err
	case l.back.drains() && l.give(anyone):
		l.conn.Close()
		return 0, io.EOF
	case n == 0:
		return l.await(buffer)
	}
	return n, nil
}

// give hands the connection back, or passes it to the worker of a slot, and the caller closes it here. It returns false if nobody takes it.
//
// It is passed if it was away before: then that worker may wait for it, too. And not twice before it is served, however workers disagree.
func (l *look) give(slot int) bool {
	if l.over.Load() {
		return false
	}
	if l.to = slot; l.passed || l.since.IsZero() {
		l.to = anyone
	}
	c := l.conn
	l.given[0] = fdpass.Handoff{Client: c.remote, Flags: c.flags &^ fdpass.FlagUnplaced, Details: c.details}
	for range handBackTries {
		err := l.conn.socket.Load().raw.Control(l.send)
		if err == nil {
			err = l.err
		}
		if !errors.Is(err, fdpass.ErrFull) {
			l.over.Store(err != nil)
			return err == nil
		}
		time.Sleep(handBackPause)
	}
	l.over.Store(true)
	return false
}

func (l *look) sendBack(fd uintptr) {
	l.given[0].FD = int(fd)
	if l.err = nil; !l.back.pass(l.to, l.given[:]) {
		l.err = l.back.conn.TrySend(fdpass.TypeHandBack, l.given[:])
	}
}

// await waits until there is something, and peeks at it.
func (l *look) await(buffer []byte) (n int, err error) {
	l.buffer = buffer
	err = l.conn.socket.Load().raw.Read(l.peek)
	l.buffer = nil
	switch {
	case err != nil:
		return 0, err
	case l.err != nil:
		return 0, l.err
	case l.n == 0:
		return 0, io.EOF
	}
	return l.n, nil
}

func (l *look) peekOnce(fd uintptr) bool {
	n, errno := recv(fd, &l.buffer[0], len(l.buffer), unix.MSG_PEEK)
	if errno == unix.EAGAIN {
		return false
	}
	l.n, l.err = n, nil
	if errno != 0 {
		l.n, l.err = 0, errno
	}
	return true
}

// take takes n bytes from the socket, which are there.
func (l *look) take(n int) error {
	l.n, l.err = n, nil
	if err := l.conn.socket.Load().raw.Control(l.drop); err != nil {
		return err
	}
	return l.err
}

// dropAll drops n bytes without copying them anywhere.
func (l *look) dropAll(fd uintptr) {
	var into *byte
	size, flags := math.MaxInt, uintptr(unix.MSG_TRUNC)
	if l.conn.isUnix() {
		buffer := headBuffers.Get().(*[]byte)
		defer headBuffers.Put(buffer)
		into, size, flags = &(*buffer)[0], len(*buffer), 0
	}
	for l.n > 0 {
		n, errno := recv(fd, into, min(l.n, size), flags)
		if errno != 0 || n == 0 {
			l.err = io.ErrUnexpectedEOF
			return
		}
		l.n -= n
	}
}

// recv is recv(2) of size bytes without waiting, and so a raw call.
func recv(fd uintptr, buffer *byte, size int, flags uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(buffer)), uintptr(size),
			flags|unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// where a request belongs.
type where int

const (
	unknown where = iota // it is no HTTP/1, or not yet
	here
	elsewhere
)

// belongs tells where the next request belongs, of which this has arrived, and perhaps more, and to which slot if it is known. What has come of
// a head that is not whole goes back: the master waits for the rest.
func (l *look) belongs(data []byte, more bool) (at where, slot int) {
	if l.back.slots.Load() == 0 {
		return unknown, anyone
	}
	head := forwarded.Head{Request: l.back.rules.Request()}
	switch head.Scan(data) {
	case forwarded.Complete:
		slot, there := l.back.isElsewhere(&head.Request, l.conn.source())
		if there {
			return elsewhere, slot
		}
		return here, slot
	case forwarded.NotHTTP:
		l.over.Store(true)
	case forwarded.Partial:
		if !more {
			return elsewhere, anyone
		}
		return l.belongsLong(len(data))
	}
	return unknown, anyone
}

// belongsLong is belongs for a head that is longer than what was peeked.
func (l *look) belongsLong(peeked int) (where, int) {
	long := headBuffers.Get().(*[]byte)
	defer headBuffers.Put(long)
	if peeked >= len(*long) {
		return elsewhere, anyone // the master has an answer to that
	}
	n, err := l.await(*long)
	if err != nil {
		return unknown, anyone // which the next read says
	}
	return l.belongs((*long)[:n], n == len(*long))
}

// begun says that package http has read the head of a request, and tells whether that belongs here for sure.
func (l *look) begun() (judged bool) {
	l.served.Store(true)
	judged, l.judged = l.judged, false
	return judged
}

// hijacked says that the connection is no longer its server's.
func (l *look) hijacked() {
	l.over.Store(true)
	l.expecting.Store(false)
	l.takeLent()
}

// leaves tells whether the connection is handed back when its request is answered, if the worker drains then.
func (l *look) leaves() bool {
	return l != nil && l.http && !l.over.Load() && (l.served.Load() || l.expecting.Load()) && l.back.slots.Load() > 0
}
