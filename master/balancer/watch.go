package balancer

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// epoll is a watcher: one goroutine and one descriptor for all connections. Go's own poller has neither, but then each connection
// takes a goroutine that waits and a duplicate of its descriptor to leave it.
type epoll struct {
	file  *os.File // itself in Go's poller
	ended chan struct{}
}

// watch begins to tell come. The caller owns the watcher.
func watch(come func(ids []uint64)) (watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := sock.SetNonblock(fd); err != nil { // else Go does not poll it
		unix.Close(fd)
		return nil, err
	}
	e := &epoll{file: os.NewFile(uintptr(fd), "idle connections"), ended: make(chan struct{})}
	raw, err := e.file.SyscallConn()
	if err != nil {
		e.file.Close()
		return nil, err
	}
	go e.run(raw, come)
	return e, nil
}

func (e *epoll) run(raw syscall.RawConn, come func(ids []uint64)) {
	defer close(e.ended)
	events := make([]unix.EpollEvent, fdpass.MaxBatch)
	ids := make([]uint64, 0, len(events))
	wait := func(fd uintptr) bool {
		n, _ := unix.EpollWait(int(fd), events, 0) // EINTR: it does not wait
		ids = ids[:0]
		for _, event := range events[:max(n, 0)] {
			ids = append(ids, uint64(uint32(event.Fd))|uint64(uint32(event.Pad))<<32)
		}
		return n > 0
	}
	for raw.Read(wait) == nil {
		come(ids)
	}
}

func (e *epoll) add(fd int, id uint64) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(id), Pad: int32(id >> 32)}
	return e.control(unix.EPOLL_CTL_ADD, fd, &event)
}

// remove is needed although the descriptor is closed next: a worker may still have a copy, with which it would be watched on.
func (e *epoll) remove(fd int) { e.control(unix.EPOLL_CTL_DEL, fd, nil) }

func (e *epoll) control(op, fd int, event *unix.EpollEvent) error {
	return sock.Control(e.file, func(epoll int) error {
		return os.NewSyscallError("epoll_ctl", unix.EpollCtl(epoll, op, fd, event))
	})
}

func (e *epoll) close() {
	e.file.Close()
	<-e.ended
}
