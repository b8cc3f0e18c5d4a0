package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The load generator shares the machine with what it measures, so it is as cheap
// as can be: an epoll loop on each of a few threads, and no allocation for a
// connection.

const (
	// maxAnswer is the longest answer that is expected.
	maxAnswer = 1024
	// maxFailures ends a load that makes no sense.
	maxFailures = 1000
	// patience is how long connections in flight may take when no more are opened.
	patience = 5 * time.Second
	// maxClients is how many source addresses there are in 127.1.0.0 to 127.254.255.255.
	maxClients = 254 << 16
)

// exchange is what happens on a connection: the client sends its request, and the
// answer begins and ends as given.
type exchange struct {
	requests       [][]byte // clients take turns with them, at least 1
	prefix, suffix []byte
	length         int // of the whole answer; 0: it varies
}

// complete tells whether that is a whole answer, with an error if it cannot become one.
func (x *exchange) complete(answer []byte) (bool, error) {
	begun := answer[:min(len(answer), len(x.prefix))]
	if len(answer) >= maxAnswer || (x.length > 0 && len(answer) > x.length) || !bytes.HasPrefix(x.prefix, begun) {
		return false, fmt.Errorf("unexpected answer %.60q", answer)
	}
	return len(answer) >= len(x.prefix)+len(x.suffix) && bytes.HasSuffix(answer, x.suffix), nil
}

// load says which connections to open.
type load struct {
	to          netip.AddrPort
	exchange    exchange
	clients     int           // source addresses, which take turns
	concurrency int           // connections in flight, at least 1
	duration    time.Duration // for how long connections are opened
	total       int           // how many are opened at most; 0: no limit
	keep        bool          // whether they stay open until closeKept

	until <-chan struct{} // ends the duration when it is closed; nil: nothing does
}

// loadResult is what came of a load.
type loadResult struct {
	latencies []time.Duration // from connect to the full answer, sorted
	inTime    int             // how many of them ended within the load's duration
	failed    int
	misplaced int   // answered by another worker than the same request before; of a talk
	err       error // one of the failures
	kept      []*loader
}

// run returns when all connections have ended, or are kept.
func (l load) run(ctx context.Context) (loadResult, error) {
	threads := min(runtime.NumCPU(), l.concurrency)
	loaders := make([]*loader, threads)
	for i := range loaders {
		one := l
		one.concurrency = share(l.concurrency, threads, i)
		one.total = share(l.total, threads, i)
		var err error
		if loaders[i], err = newLoader(one, i, threads); err != nil {
			closeLoaders(loaders[:i])
			return loadResult{}, err
		}
	}
	var running sync.WaitGroup
	for _, loader := range loaders {
		running.Go(func() { loader.run(ctx) })
	}
	running.Wait()

	var sum loadResult
	for _, loader := range loaders {
		sum.add(&loader.result)
	}
	slices.Sort(sum.latencies)
	if l.keep {
		sum.kept = loaders
	} else {
		closeLoaders(loaders)
	}
	return sum, context.Cause(ctx)
}

// share is the part of n that the i-th of several takes.
func share(n, of, i int) int { return n*(i+1)/of - n*i/of }

func (r *loadResult) add(other *loadResult) {
	r.latencies = append(r.latencies, other.latencies...)
	r.inTime += other.inTime
	r.failed += other.failed
	r.misplaced += other.misplaced
	if other.err != nil {
		r.err = other.err
	}
}

// closeKept closes the connections that were kept and returns how many of them
// had been closed, or written to, by the other side.
func (r *loadResult) closeKept() (disturbed int) {
	for _, loader := range r.kept {
		disturbed += loader.disturbed()
	}
	closeLoaders(r.kept)
	return disturbed
}

func closeLoaders(loaders []*loader) {
	for _, loader := range loaders {
		loader.close()
	}
}

// loader is one thread of a load.
type loader struct {
	load
	epoll    int
	deadline time.Time
	client   int // the next source address
	stride   int // and how far it is to the one after
	places   []place
	flying   int // how many places have a connection
	opened   int
	kept     []int
	source   unix.SockaddrInet4
	target   unix.SockaddrInet4
	result   loadResult
}

// place holds one connection in flight.
type place struct {
	fd      int // -1: none
	request []byte
	sent    bool
	started time.Time
	length  int // of the answer so far
	answer  [maxAnswer]byte
}

func newLoader(l load, client, stride int) (*loader, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &loader{
		load:   l,
		epoll:  epoll,
		client: client,
		stride: stride,
		places: make([]place, l.concurrency),
		target: unix.SockaddrInet4{Addr: l.to.Addr().As4(), Port: int(l.to.Port())},
	}, nil
}

// run fills the places and refills them until the load is over.
func (l *loader) run(ctx context.Context) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l.deadline = time.Now().Add(l.duration)
	for i := range l.places {
		l.places[i].fd = -1
		l.fill(ctx, i)
	}
	events := make([]unix.EpollEvent, len(l.places))
	for l.flying > 0 && ctx.Err() == nil && time.Since(l.deadline) < patience {
		select {
		case <-l.until:
			l.deadline, l.until = time.Now(), nil
		default:
		}
		n, err := unix.EpollWait(l.epoll, events, 100)
		if err != nil && err != unix.EINTR {
			l.fail(os.NewSyscallError("epoll_wait", err))
			break
		}
		for _, event := range events[:max(n, 0)] {
			if l.step(int(event.Fd)) {
				l.fill(ctx, int(event.Fd))
			}
		}
	}
	for i := range l.places {
		if fd := l.places[i].fd; fd >= 0 {
			l.fail(errors.New("not answered"))
			unix.Close(fd)
		}
	}
}

// fill opens a connection in an empty place, unless the load is over.
func (l *loader) fill(ctx context.Context, i int) {
	for ctx.Err() == nil && l.result.failed < maxFailures && (l.total == 0 || l.opened < l.total) {
		now := time.Now()
		if now.After(l.deadline) {
			return
		}
		l.opened++
		p := &l.places[i]
		p.started, p.sent, p.length = now, false, 0
		err := l.open(i)
		if err == nil {
			l.flying++
			return
		}
		if p.fd >= 0 {
			unix.Close(p.fd)
			p.fd = -1
		}
		l.fail(err)
	}
}

func (l *loader) fail(err error) {
	l.result.failed++
	l.result.err = err
}

// open connects from the next client. On loopback a connection is there when
// connect returns, so that the request can be sent at once.
func (l *loader) open(i int) (err error) {
	p := &l.places[i]
	p.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	// Closing resets the connection: no TIME-WAIT piles up.
	if err := unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	l.source.Addr = clientAddress(l.client)
	p.request = l.exchange.requests[l.client%len(l.exchange.requests)]
	l.client = (l.client + l.stride) % l.clients
	if err := unix.Bind(p.fd, &l.source); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Connect(p.fd, &l.target); err != nil && err != unix.EINPROGRESS {
		return os.NewSyscallError("connect", err)
	}
	if err := l.send(p); err != nil {
		return err
	}
	return l.watch(unix.EPOLL_CTL_ADD, i)
}

// clientAddress is the i-th source address.
func clientAddress(i int) [4]byte {
	third, fourth := lastBytes(i)
	return [4]byte{127, byte(i>>16) + 1, third, fourth}
}

// lastBytes returns those of the i-th address, a pair for each of 65,536.
// Neighbours differ in the third byte, since nginx's ip_hash looks no further, and
// in the fourth, since HAProxy's balance source takes the remainder of the whole.
func lastBytes(i int) (third, fourth byte) { return byte(i), byte(i) + byte(i>>8) }

// watch waits for what the place's connection does next.
func (l *loader) watch(op, i int) error {
	event := unix.EpollEvent{Fd: int32(i), Events: unix.EPOLLIN}
	if !l.places[i].sent {
		event.Events = unix.EPOLLOUT
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epoll, op, l.places[i].fd, &event))
}

// send sends the request unless the connection is not there yet.
func (l *loader) send(p *place) error {
	n, err := unix.Write(p.fd, p.request)
	switch {
	case err == unix.EAGAIN:
		return nil
	case err != nil:
		return os.NewSyscallError("write", err)
	case n < len(p.request):
		return io.ErrShortWrite
	}
	p.sent = true
	return nil
}

// step goes on with a connection and reports whether its place is empty now.
func (l *loader) step(i int) (ended bool) {
	p := &l.places[i]
	complete, err := l.advance(i)
	if err == nil && !complete {
		return false
	}
	if err != nil {
		l.fail(err)
	} else {
		now := time.Now()
		l.result.latencies = append(l.result.latencies, now.Sub(p.started))
		if now.Before(l.deadline) {
			l.result.inTime++
		}
	}
	if err == nil && l.keep {
		l.kept = append(l.kept, p.fd)
	} else {
		unix.Close(p.fd)
	}
	p.fd = -1
	l.flying--
	return true
}

// advance does what a connection is ready for.
func (l *loader) advance(i int) (complete bool, err error) {
	p := &l.places[i]
	if !p.sent {
		if err := l.send(p); err != nil {
			return false, err
		}
		return false, l.watch(unix.EPOLL_CTL_MOD, i)
	}
	n, err := unix.Read(p.fd, p.answer[p.length:])
	switch {
	case err == unix.EAGAIN:
		return false, nil
	case err != nil:
		return false, os.NewSyscallError("read", err)
	}
	p.length += n
	if n == 0 {
		return false, fmt.Errorf("the connection ended after %.60q", p.answer[:p.length])
	}
	return l.exchange.complete(p.answer[:p.length])
}

// disturbed counts kept connections that have something to read: an end, a
// reset, or bytes that nobody asked for.
func (l *loader) disturbed() int {
	polls := make([]unix.PollFd, len(l.kept))
	for i, fd := range l.kept {
		polls[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	n, err := unix.Poll(polls, 0)
	if err != nil {
		return len(l.kept)
	}
	return n
}

func (l *loader) close() {
	for _, fd := range l.kept {
		unix.Close(fd)
	}
	unix.Close(l.epoll)
}
