package worker

import (
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

const (
	// awayTimeout is how long a connection that was handed back is waited for.
	awayTimeout = 10 * time.Second
	// maxAway is how many are. Each keeps a goroutine of package http's, with its buffers: about 20 KiB.
	maxAway = 256
)

// away are connections that were handed back and that may come back, as those of a pool do: each goes to and fro between the slots.
// Package http's goroutine goes on waiting for the next request meanwhile, so that a connection which comes back costs neither a
// new one, which is most of what accepting costs, nor what package http makes for each connection. To the server it never was away.
//
// Its lock is that of the handBack, and so are the fields of looks that it writes.
type away map[uint64]*look // by the socket's cookie, which no other one ever has (SO_COOKIE)

// awaitReturn is called when a connection was handed back. It closes it here and waits until it comes back, with a request, and
// returns false if it does not: the connection is closed.
func (l *look) awaitReturn() bool {
	// If a byte is lent, package http has the first one of another request.
	if !l.http || l.lent.Load() || !l.back.leave(l) {
		l.conn.Close()
		return false
	}
	l.conn.socket.Load().Close()
	l.conn.listener.count(-1)
	h := <-l.returned
	return h.FD >= 0 && l.resume(h)
}

// prepare has what is needed before the connection is away for the first time.
func (l *look) prepare() {
	if l.returned != nil {
		return
	}
	l.conn.socket.Load().raw.Control(func(fd uintptr) { l.cookie = sock.Cookie(int(fd)) })
	l.returned = make(chan fdpass.Handoff, 1)
}

// resume goes on with a connection that has come back. It takes ownership of its descriptor.
func (l *look) resume(h fdpass.Handoff) bool {
	if l.passed {
		sock.SetNonblock(h.FD) // as the master does
	}
	s := openSocket(h.FD)
	l.judged = !l.passed
	l.conn.socket.Store(&s)
	if l.conn.closed.Load() { // perhaps before that
		s.Close()
		return false
	}
	return true
}

// leave says that a connection is away from now on. It returns false if it is not to be waited for.
func (h *handBack) leave(l *look) bool {
	l.prepare()
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.cookie == 0 || h.away[l.cookie] != nil || len(h.away) >= maxAway || h.draining.Load() || l.conn.closed.Load() {
		return false
	}
	h.away[l.cookie] = l
	l.isAway, l.since = true, time.Now()
	delete(h.looked, l)
	if h.expiry == nil {
		h.expiry = time.AfterFunc(h.awayTimeout, h.expire)
	}
	return true
}

// expire ends those connections that were waited for long enough. It is called again while there are some: each is waited for between
// once and twice awayTimeout. That takes one timer for all, and no change of it when one comes or goes, which can cost the waking of a thread.
func (h *handBack) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.away {
		if time.Since(l.since) >= h.awayTimeout {
			h.giveUp(l)
		}
	}
	if h.expiry = nil; len(h.away) > 0 {
		h.expiry = time.AfterFunc(h.awayTimeout, h.expire)
	}
}

// giveUp says that a connection that is away does not come back. The caller holds h.mu.
func (h *handBack) giveUp(l *look) {
	delete(h.away, l.cookie)
	l.returned <- fdpass.Handoff{FD: -1}
}

// remove says that a connection is closed. It tells whether that was away, and so not open here.
func (h *handBack) remove(l *look) (wasAway bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.looked, l)
	if h.away[l.cookie] == l {
		h.giveUp(l)
	}
	return l.isAway
}

// takeReturned takes ownership of a connection if it was away and has come back with a request. passed: another worker says so, and not the
// master.
func (h *handBack) takeReturned(c fdpass.Handoff, passed bool) bool {
	if h == nil || c.Flags&fdpass.FlagUnplaced != 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.away) == 0 {
		return false
	}
	l := h.away[sock.Cookie(c.FD)]
	if l == nil || l.conn.remote != c.Client || l.conn.details != c.Details || (l.conn.flags^c.Flags)&fdpass.FlagProxied != 0 {
		return false
	}
	delete(h.away, l.cookie)
	l.isAway, l.passed = false, passed
	h.looked[l] = struct{}{}
	l.returned <- c
	return true
}
