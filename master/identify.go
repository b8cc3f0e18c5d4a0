package master

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/clientip"
)

// noSlot stands in the lot for the slot of a client who is not known yet.
const noSlot = -1

// identify finds the clients of a batch, and returns those connections whose client is
// known. It takes ownership of the others, which wait or are refused.
func (b *Balancer) identify(batch []arrival, buffer []byte) (known []arrival) {
	known = batch[:0]
	for i := range batch {
		a := &batch[i]
		var err error
		if a.client, err = b.clients.Now(&a.Handoff, buffer); err == nil {
			known = append(known, *a)
		} else {
			b.parkUnknown(*a, err)
		}
	}
	return known
}

// parkUnknown takes ownership of a connection whose client is not known, and why.
func (b *Balancer) parkUnknown(a arrival, why error) {
	switch {
	case why == clientip.ErrGone:
		unix.Close(a.FD)
		b.gone.Add(1)
	case b.lot.enter(noSlot, b.half()):
		go b.awaitClient(a)
	case why == clientip.ErrSilent:
		b.turnAway(a, noSlot, errCrowdedSilent)
	default:
		b.turnAway(a, noSlot, errCrowded)
	}
}

// awaitClient is the life of a connection until its client is known.
func (b *Balancer) awaitClient(a arrival) {
	defer b.lot.leave(noSlot)
	file := os.NewFile(uintptr(a.FD), "parked connection")
	var err error
	if a.client, err = b.clients.Wait(b.hurry, file, &a.Handoff); err == nil {
		// Closing the file takes it out of Go's poller, which would go on reporting
		// the connection while a worker has it.
		a.FD, err = dup(file)
	}
	if err == clientip.ErrPartial && b.hurry.Err() != nil {
		err = errStopping
	}
	switch err {
	case nil:
		defer b.park(a)
	case clientip.ErrGone:
		b.gone.Add(1)
	default:
		b.sayWhy(file, a, noSlot, err, lingerTimeout)
	}
	file.Close()
}

// dup returns a duplicate of a file's descriptor, which the caller owns.
func dup(file *os.File) (fd int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	raw.Control(func(borrowed uintptr) {
		if fd, err = unix.FcntlInt(borrowed, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			err = errNoFile
		}
	})
	return fd, err
}

// deferAccept sets whether a listener's connections are accepted only when they have
// brought their first bytes (TCP_DEFER_ACCEPT, man 7 tcp), so that a peek finds them.
// A client that is silent for a second is accepted all the same.
func deferAccept(listener syscall.RawConn, on bool) (err error) {
	seconds := 0
	if on {
		seconds = 1
	}
	controlErr := listener.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, seconds))
	})
	if controlErr != nil {
		return controlErr
	}
	return err
}
