package worker

import (
	"os"
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
	l.conn.file.Load().Close()
	l.conn.listener.count(-1)
	l.patience.Reset(l.back.awayTimeout)
	defer l.patience.Stop()
	var h fdpass.Handoff
	select {
	case h = <-l.returned:
	case <-l.patience.C:
		if l.back.forget(l) {
			return false
		}
		h = <-l.returned
	}
	return h.FD >= 0 && l.resume(h)
}

// prepare has what is needed before the connection is away for the first time.
func (l *look) prepare() {
	if l.returned != nil {
		return
	}
	l.raw.Control(func(fd uintptr) { l.cookie = sock.Cookie(int(fd)) })
	l.returned = make(chan fdpass.Handoff, 1)
	l.patience = time.NewTimer(l.back.awayTimeout)
}

// resume goes on with a connection that has come back. It takes ownership of its descriptor.
func (l *look) resume(h fdpass.Handoff) bool {
	file := os.NewFile(uintptr(h.FD), "tcp")
	l.raw, _ = file.SyscallConn() // no error: there is a file
	l.judged = true
	l.conn.file.Store(file)
	if l.conn.closed.Load() { // perhaps before that
		file.Close()
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
	l.isAway = true
	delete(h.looked, l)
	return true
}

// forget says that a connection is not waited for any more. It returns false if it was not away, or it is known already that it
// comes back, or never.
func (h *handBack) forget(l *look) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away[l.cookie] != l {
		return false
	}
	delete(h.away, l.cookie)
	return true
}

// remove says that a connection is closed. It tells whether that was away, and so not open here.
func (h *handBack) remove(l *look) (wasAway bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.looked, l)
	if h.away[l.cookie] == l {
		delete(h.away, l.cookie)
		l.returned <- fdpass.Handoff{FD: -1}
	}
	return l.isAway
}

// takeReturned takes ownership of a connection if it was away and has come back with a request.
func (h *handBack) takeReturned(c fdpass.Handoff) bool {
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
	l.isAway = false
	h.looked[l] = struct{}{}
	l.returned <- c
	return true
}
