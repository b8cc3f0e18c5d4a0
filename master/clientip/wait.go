package clientip

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// Wait finds a connection's client when enough has arrived, or fails with what Now
// says when the header timeout is over or ctx ends. It borrows file, which waits in
// Go's poller and whose descriptor h.FD is.
//
// The timeout is one for all that must come: a client cannot stretch it byte by byte.
func (f *Finder) Wait(ctx context.Context, file *os.File, h *fdpass.Handoff) (client Client, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return Client{}, err
	}
	file.SetReadDeadline(time.Now().Add(f.cfg.HeaderTimeout))
	defer context.AfterFunc(ctx, func() { file.SetReadDeadline(time.Unix(1, 0)) })()
	look := func(uintptr) (done bool) {
		// The buffer is held for the look, not for the wait: thousands may wait.
		buffer := f.buffers.Get().(*[]byte)
		defer f.buffers.Put(buffer)
		client, err = f.find(h, *buffer, ended(h.FD))
		return err != ErrSilent && err != ErrPartial
	}
	if raw.Read(look) != nil { // the time is over: what has come since the last look?
		raw.Control(func(fd uintptr) { look(fd) })
	}
	return client, err
}

// ended tells whether the peer will send no more. Whoever wants to know all that it
// sent asks before they look: a FIN hides behind unread bytes, and what comes with it may
// come between two system calls.
func ended(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}
