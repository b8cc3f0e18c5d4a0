package balancer

import (
	"os"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
)

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
	p, err := b.enter(a, b.nowhere(&a), b.half())
	if err != nil {
		return false
	}
	go b.awaitClient(p)
	return true
}

// parkUnknown takes ownership of a connection whose client is not known, and why.
func (b *Balancer) parkUnknown(a arrival, why error) {
	switch why {
	case clientip.ErrGone:
		fdpass.CloseConnections(a.FD)
		b.gone.Add(1)
		b.tell(&a, NoSlot, nil, why)
	case clientip.ErrSilent, clientip.ErrPartial:
		if p, err := b.enter(a, b.nowhere(&a), b.half()); err == nil {
			go b.awaitClient(p)
		} else if why == clientip.ErrSilent {
			b.turnAway(a, NoSlot, errCrowdedSilent)
		} else {
			b.turnAway(a, NoSlot, errCrowded)
		}
	default:
		b.turnAway(a, NoSlot, why)
	}
}

// awaitClient is the life of a connection until its client is known.
func (b *Balancer) awaitClient(p *parked) {
	file := os.NewFile(uintptr(p.FD), "parked connection")
	client, err := b.clients.Wait(b.hurry, file, &p.Handoff)
	if err == clientip.ErrPartial && b.hurry.Err() != nil {
		err = errStopping
	}
	stays := false
	if err == nil {
		stays, err = b.hasClient(p, file, client)
	}
	switch {
	case err == clientip.ErrGone:
		b.isGone(p, file)
	case err != nil:
		b.refuse(p, b.lot, file, NoSlot, err)
	case stays:
		b.awaitSlot(p)
	}
}

// isGone ends a connection that its client has ended.
func (b *Balancer) isGone(p *parked, file *os.File) {
	reexec.Lock.RLock()
	b.gone.Add(1)
	b.tell(&p.arrival, NoSlot, nil, clientip.ErrGone)
	b.lot.leave(p)
	reexec.Lock.RUnlock()
	end(file)
}

// hasClient goes on with a connection whose client is known. Stays tells whether it is
// parked still, for want of its worker. The error is why it is to be refused.
func (b *Balancer) hasClient(p *parked, file *os.File, client clientip.Client) (stays bool, err error) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	// Closing the file takes it out of Go's poller, which would go on reporting
	// the connection while a worker has it.
	fd, err := dup(file)
	if err != nil {
		return true, err
	}
	p.FD, p.client = fd, client
	file.Close()
	if _, err := b.tryOffer(&p.arrival, 0); err == nil {
		b.lot.leave(p)
		return false, nil
	}
	// It keeps its place in the lot, so that it can have the last one.
	slots := b.table.Len()
	home := place{slot: b.cfg.Strategy.Slot(p.client, slots, 0), client: p.client.Key}
	if err := b.lot.move(p, home, b.share(slots)); err != nil {
		b.lot.leave(p)
		b.turnAway(p.arrival, home.slot, err)
		return false, nil
	}
	return true, nil
}
