package fdpass

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// A worker may do to a socket what it likes, and share it with us while it does. If it sets SO_LINGER
// and leaves data unsent, the process that closes the last copy waits (man 7 socket): for as long as
// the worker said, with whatever locks are held. So nobody closes what a worker has sent, or
// has had, but by what is in this file.

// CloseConnections takes ownership of connections that a worker may have had, and closes them now,
// with lingering off.
//
// A worker that holds a copy could switch it on again in the moment between, and close its own: then
// this waits for one or two hundredths of a second, since the close is a raw system call. The Go
// runtime sees a thread that does not yield and signals it (runtime.retake), and a signal ends the
// waiting (sk_stream_wait_close).
func CloseConnections(fds ...int) {
	for _, fd := range fds {
		closeConnection(fd)
	}
}

func closeConnection(fd int) {
	sock.StopLingering(fd)
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// maxDiscarded is how many descriptors of one sender may wait to be closed: as many as one message
// can carry (SCM_MAX_FD, net/core/scm.h).
const maxDiscarded = maxRights

// A Bin closes descriptors that one sender has sent and that nobody wants, whatever they are. Closing
// a file of a file system whose server is gone may take for ever, and then concerns this Bin alone. One
// goroutine runs for it while there is something to close. The zero Bin is empty.
type Bin struct {
	mu      sync.Mutex
	waiting []int
	closing bool // the goroutine runs
}

// Discard takes ownership of descriptors. It does not wait.
func (b *Bin) Discard(fds ...int) {
	if len(fds) == 0 {
		return
	}
	for _, fd := range fds {
		sock.StopLingering(fd) // now, since execve would close it, too
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = append(b.waiting, fds...)
	if !b.closing {
		b.closing = true
		go b.empty()
	}
}

// Full tells whether so much waits that its sender should not be heard any more until it is closed.
func (b *Bin) Full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting) > maxDiscarded
}

func (b *Bin) empty() {
	for {
		b.mu.Lock()
		if len(b.waiting) == 0 {
			b.waiting, b.closing = nil, false
			b.mu.Unlock()
			return
		}
		fd := b.waiting[0]
		b.waiting = b.waiting[1:]
		b.mu.Unlock()
		sock.StopLingering(fd)
		unix.Close(fd) // it may wait, and Go goes on without its thread
	}
}
