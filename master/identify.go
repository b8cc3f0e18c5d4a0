package master

import (
	"os"
	"time"

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
		a.client, err = b.clients.Now(&a.Handoff, buffer)
		switch {
		case err == clientip.ErrNoSession && b.awaitSession(*a):
		case err == nil, err == clientip.ErrNoSession:
			known = append(known, *a)
		default:
			b.parkUnknown(*a, err)
		}
	}
	return known
}

// awaitSession takes ownership of a connection whose request may name a session, if there
// is room to wait for it: nobody is refused for a session that it does not have.
func (b *Balancer) awaitSession(a arrival) bool {
	if b.lot.enter(nowhere, b.half()) != nil {
		return false
	}
	go b.awaitClient(a)
	return true
}

// parkUnknown takes ownership of a connection whose client is not known, and why.
func (b *Balancer) parkUnknown(a arrival, why error) {
	switch why {
	case clientip.ErrGone:
		unix.Close(a.FD)
		b.gone.Add(1)
		b.tell(&a, noSlot, nil, why)
	case clientip.ErrSilent, clientip.ErrPartial:
		if b.lot.enter(nowhere, b.half()) == nil {
			go b.awaitClient(a)
		} else if why == clientip.ErrSilent {
			b.turnAway(a, noSlot, errCrowdedSilent)
		} else {
			b.turnAway(a, noSlot, errCrowded)
		}
	default:
		b.turnAway(a, noSlot, why)
	}
}

// awaitClient is the life of a connection until its client is known.
func (b *Balancer) awaitClient(a arrival) {
	at := nowhere
	a.parked = time.Now()
	defer func() { b.lot.leave(at) }()
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
	case clientip.ErrGone:
		b.gone.Add(1)
		b.tell(&a, noSlot, nil, err)
	default:
		b.sayWhy(file, a, noSlot, err, lingerTimeout)
	}
	file.Close()
	if err != nil {
		return
	}
	if _, err = b.offer(a, 0); err == nil {
		return
	}
	// It keeps its place in the lot, so that it can have the last one.
	slots := b.table.Len()
	home := place{b.cfg.Strategy.Slot(a.client, slots, 0), a.client.Key}
	if err := b.lot.move(at, home, b.share(slots)); err != nil {
		b.turnAway(a, home.slot, err)
		return
	}
	at = home
	b.awaitSlot(a, home.slot)
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
