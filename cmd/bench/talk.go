package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// talk has exchanges on the kept connections, which take turns: as many at a
// time as concurrency says, for a while. Each ends before the connection's next one begins.
func (r *loadResult) talk(ctx context.Context, x exchange, concurrency int, d time.Duration) (sum loadResult, err error) {
	talks := make([]*talk, len(r.kept))
	var running sync.WaitGroup
	for i, loader := range r.kept {
		talks[i] = &talk{
			exchange: x, request: i, stride: len(r.kept), workers: make([]int, len(x.requests)),
			epoll: loader.epoll, sockets: make([]socket, len(loader.kept)),
			concurrency: min(share(concurrency, len(r.kept), i), len(loader.kept)),
		}
		for j, fd := range loader.kept {
			talks[i].sockets[j].fd = fd
		}
		running.Go(func() { talks[i].run(ctx, d) })
	}
	running.Wait()
	for _, t := range talks {
		sum.add(&t.result)
	}
	slices.Sort(sum.latencies)
	return sum, context.Cause(ctx)
}

// meteredTalk has exchanges on the kept connections for as long as the load lasts, and before that to warm up. It
// returns what came of it and what all involved have used for it, and have used in the end.
func (s *stage) meteredTalk(ctx context.Context, held *loadResult, x exchange) (result loadResult, used, after usage, err error) {
	if len(held.latencies) == 0 {
		return result, used, after, fmt.Errorf("no connection was opened: %w", held.err)
	}
	if _, err = held.talk(ctx, x, s.concurrency, min(warmUp, s.duration)); err != nil {
		return result, used, after, err
	}
	used, after, err = s.metered(func() (err error) {
		result, err = held.talk(ctx, x, s.concurrency, s.duration)
		return err
	})
	if err == nil {
		s.note(result.err)
	}
	return result, used, after, err
}

// talk is one thread's part of it. It borrows the connections.
type talk struct {
	exchange
	request     int   // the next one
	stride      int   // and how far it is to the one after, since other threads send the others
	workers     []int // by request: the one that answered it first, if the answers name it
	epoll       int   // where the connections are registered
	sockets     []socket
	concurrency int
	deadline    time.Time
	next        int // whose turn it is
	flying      int // requests without an answer
	result      loadResult
}

// socket is a connection in a talk.
type socket struct {
	fd      int
	request int  // the last one
	waiting bool // for its answer
	failed  bool // it is not used again
	answer  []byte
	sent    time.Time
}

func (t *talk) run(ctx context.Context, d time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t.deadline = time.Now().Add(d)
	for i := range t.sockets {
		// They were registered by their places in the load.
		event := unix.EpollEvent{Fd: int32(i), Events: unix.EPOLLIN}
		if err := unix.EpollCtl(t.epoll, unix.EPOLL_CTL_MOD, t.sockets[i].fd, &event); err != nil {
			t.fail(i, os.NewSyscallError("epoll_ctl", err))
		}
	}
	for range t.concurrency {
		t.say()
	}
	events := make([]unix.EpollEvent, max(t.concurrency, 1))
	for t.flying > 0 && ctx.Err() == nil && time.Since(t.deadline) < patience {
		n, err := unix.EpollWait(t.epoll, events, 100)
		if err != nil && err != unix.EINTR {
			break
		}
		for _, event := range events[:max(n, 0)] {
			if t.hear(int(event.Fd)) {
				t.say()
			}
		}
	}
	for i := range t.sockets {
		if t.sockets[i].waiting {
			t.fail(i, errors.New("not answered"))
		}
	}
}

// say sends a request on the next connection that is idle, unless the time is over.
func (t *talk) say() {
	for range t.sockets {
		now := time.Now()
		if now.After(t.deadline) {
			return
		}
		i := t.next
		t.next = (t.next + 1) % len(t.sockets)
		s := &t.sockets[i]
		if s.waiting || s.failed {
			continue
		}
		s.request = t.request % len(t.requests)
		t.request += t.stride
		n, err := unix.Write(s.fd, t.requests[s.request])
		if err == nil && n == len(t.requests[s.request]) {
			s.waiting, s.answer, s.sent = true, s.answer[:0], now
			t.flying++
			return
		}
		t.fail(i, cmp.Or(os.NewSyscallError("write", err), io.ErrShortWrite))
	}
}

// hear reads what returns on a connection and reports whether it waits no more.
func (t *talk) hear(i int) (ended bool) {
	s := &t.sockets[i]
	var buffer [maxAnswer]byte
	n, err := unix.Read(s.fd, buffer[:])
	waiting := s.waiting
	s.answer = append(s.answer, buffer[:max(n, 0)]...)
	complete, wrong := t.complete(s.answer)
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		t.fail(i, os.NewSyscallError("read", err))
		return waiting
	case n == 0 || !waiting || wrong != nil:
		t.fail(i, cmp.Or(wrong, fmt.Errorf("unexpected answer %.60q", buffer[:n])))
		return waiting
	case !complete:
		return false
	}
	now := time.Now()
	t.result.latencies = append(t.result.latencies, now.Sub(s.sent))
	if now.Before(t.deadline) {
		t.result.inTime++
	}
	t.place(s)
	s.waiting = false
	t.flying--
	return true
}

// place compares the worker that has answered with the one that answered the same request first.
func (t *talk) place(s *socket) {
	_, rest, _ := bytes.Cut(s.answer, headerWorkerLine)
	worker := 0
	for _, digit := range rest {
		if digit < '0' || digit > '9' {
			break
		}
		worker = worker*10 + int(digit-'0')
	}
	switch first := &t.workers[s.request]; {
	case *first == 0:
		*first = worker
	case *first != worker:
		t.result.misplaced++
	}
}

// headerWorkerLine is how the line that names the worker begins.
var headerWorkerLine = []byte("\r\n" + headerWorker + ": ")

// fail gives a connection up.
func (t *talk) fail(i int, err error) {
	s := &t.sockets[i]
	unix.EpollCtl(t.epoll, unix.EPOLL_CTL_DEL, s.fd, nil)
	if s.waiting {
		t.flying--
	}
	s.waiting, s.failed = false, true
	t.result.failed++
	t.result.err = err
}
