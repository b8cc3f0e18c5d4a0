package clientip

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// Wait finds a connection's client when enough has arrived, or fails with what Now
// says when the header timeout is over or ctx ends; not with ErrNoSession, with which the
// client is known. It borrows file, which waits in
// Go's poller and whose descriptor h.FD is.
//
// The timeout is one for all that must come: a client cannot stretch it byte by byte.
func (f *Finder) Wait(ctx context.Context, file *os.File, h *fdpass.Handoff, placed bool) (client Client, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return Client{}, err
	}
	file.SetReadDeadline(time.Now().Add(f.cfg.HeaderTimeout))
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		file.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-interrupted // else it could end a later wait on file
		}
	}()
	err = ErrSilent // if it does not even come to a look
	pending := more
	look := func(uintptr) (done bool) {
		reexec.Lock.RLock() // a PROXY header is read
		defer reexec.Lock.RUnlock()
		// The buffer is held for the look, not for the wait: thousands may wait.
		buffer := f.buffers.Get().(*[]byte)
		defer f.buffers.Put(buffer)
		var end bool
		if end, err = hasEnded(h.FD); err == nil {
			if end {
				pending = ended
			}
			client, err = f.find(h, placed, *buffer, pending)
		}
		return err != ErrSilent && err != ErrPartial && err != ErrNoSession
	}
	if raw.Read(look) != nil { // the time is over: what has come since the last look?
		pending = overdue
		raw.Control(func(fd uintptr) { look(fd) })
	}
	if err == ErrNoSession {
		err = nil
	}
	return client, err
}

// hasEnded tells whether the peer will send no more. Whoever wants to know all that it
// sent asks before they look: a FIN hides behind unread bytes, and what comes with it may
// come between two system calls. So does a reset, of which recv(2) tells when all has
// been read: then the error is ErrGone.
func hasEnded(fd int) (bool, error) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(poll, 0)
	switch {
	case err != nil || n <= 0:
		return false, nil // EINTR: not yet, and the poller wakes us when it is
	case poll[0].Revents&unix.POLLHUP != 0: // both directions, and we have ended none
		return true, ErrGone
	default:
		return true, nil
	}
}
