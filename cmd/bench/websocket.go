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

// webSocketExchange is the opening handshake with the key of RFC 6455 section
// 1.3. That the answer fits the key is shown by the messages that follow.
var webSocketExchange = exchange{
	requests: [][]byte{[]byte("GET /websocket HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")},
	prefix: []byte("HTTP/1.1 101 "),
	suffix: []byte("\r\n\r\n"),
}

// The message as it is sent and as it returns (RFC 6455 section 5.2): one frame,
// masked by the client only.
var messageSent, messageReturned = message(64)

func message(size byte) (sent, returned []byte) {
	const (
		finalBinary = 0x82
		masked      = 0x80
	)
	mask := []byte("mask") // for browsers it has to be random, against caches that are tricked
	sent = append([]byte{finalBinary, masked | size}, mask...)
	returned = []byte{finalBinary, size}
	for i := range size {
		sent = append(sent, i^mask[i%4])
		returned = append(returned, i)
	}
	return sent, returned
}

// webSockets opens connections and then has messages go to and fro on them.
func webSockets(ctx context.Context, s *stage) (sample, error) {
	if err := s.warmUp(ctx, shortExchange); err != nil {
		return nil, err
	}
	empty, err := s.usage()
	if err != nil {
		return nil, err
	}
	held, err := s.hold(ctx, webSocketExchange)
	defer held.closeKept()
	if err != nil {
		return nil, err
	}
	if len(held.latencies) == 0 {
		return nil, fmt.Errorf("no WebSocket was opened: %w", held.err)
	}
	if _, err := held.talk(ctx, s.concurrency, min(warmUp, s.duration)); err != nil {
		return nil, err
	}
	var result loadResult
	used, after, err := s.metered(func() (err error) {
		result, err = held.talk(ctx, s.concurrency, s.duration)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.note(result.err)
	messages := float64(len(result.latencies))
	return result.withLatencies(sample{
		connections:        float64(len(held.latencies)),
		messageRate:        float64(result.inTime) / s.duration.Seconds(),
		balancerMessageCPU: micros(used.balancer) / messages,
		workerMessageCPU:   micros(used.workers) / messages,
		totalMessageCPU:    micros(used.total()) / messages,
		failures:           float64(held.failed + result.failed),
		addedTotal:         mebi(after.since(empty).balancerMem),
		balancerMem:        mebi(after.balancerMem),
	}), nil
}

// talk sends messages on the kept connections, which take turns: as many at a
// time as concurrency says, for a while. Each returns before the next one is sent.
func (r *loadResult) talk(ctx context.Context, concurrency int, d time.Duration) (sum loadResult, err error) {
	talks := make([]*talk, len(r.kept))
	var running sync.WaitGroup
	for i, loader := range r.kept {
		talks[i] = &talk{
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

// talk is one thread's part of it. It borrows the connections.
type talk struct {
	epoll       int // where they are registered
	sockets     []socket
	concurrency int
	deadline    time.Time
	next        int // whose turn it is
	flying      int // messages that have not returned
	result      loadResult
}

// socket is a connection in a talk.
type socket struct {
	fd      int
	waiting bool // for the message to return
	failed  bool // it is not used again
	length  int  // of what has returned
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
			t.fail(i, errors.New("a message did not return"))
		}
	}
}

// say sends a message on the next connection that is idle, unless the time is over.
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
		n, err := unix.Write(s.fd, messageSent)
		if err == nil && n == len(messageSent) {
			s.waiting, s.length, s.sent = true, 0, now
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
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		t.fail(i, os.NewSyscallError("read", err))
		return waiting
	case n == 0 || !waiting || !bytes.HasPrefix(messageReturned[s.length:], buffer[:n]):
		t.fail(i, fmt.Errorf("unexpected message %.60q", buffer[:n]))
		return waiting
	}
	s.length += n
	if s.length < len(messageReturned) {
		return false
	}
	now := time.Now()
	t.result.latencies = append(t.result.latencies, now.Sub(s.sent))
	if now.Before(t.deadline) {
		t.result.inTime++
	}
	s.waiting = false
	t.flying--
	return true
}

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
