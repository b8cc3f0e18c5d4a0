package balancer

import (
	"os"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
)

// identify finds the clients of a batch, and returns those connections whose client is
// known. It takes ownership of the others, which wait or are refused.
func (b *Balancer) identify(batch []connection, buffer []byte) (known []connection) {
	return b.identifyEach(batch, buffer, nil)
}

// identifyEach is identify, except that silent, if there is one, takes ownership of connections on which nothing of a
// request is there.
func (b *Balancer) identifyEach(batch []connection, buffer []byte, silent func(connection)) (known []connection) {
	known = batch[:0]
	for i := range batch {
		c := &batch[i]
		b.locate(c)
		var err error
		c.client, err = b.clients.Now(&c.Handoff, c.addressed, buffer)
		switch {
		case err == clientip.ErrNoSession && b.waitForSession(*c):
		case err == nil, err == clientip.ErrNoSession:
			b.spread(c)
			b.table.count(c)
			known = append(known, *c)
		case err == clientip.ErrSilent && silent != nil:
			silent(*c)
		default:
			b.parkUnknown(*c, err)
		}
	}
	return known
}

// waitForSession takes ownership of a connection whose request may name a session, if there
// is room to wait for it: nobody is refused for a session that it does not have.
func (b *Balancer) waitForSession(c connection) bool {
	p, err := b.enter(c, b.unplaced(&c), b.half())
	if err != nil {
		return false
	}
	go b.waitForClient(p)
	return true
}

// parkUnknown takes ownership of a connection whose client is not known, and why.
func (b *Balancer) parkUnknown(c connection, why error) {
	switch why {
	case clientip.ErrGone:
		fdpass.CloseConnections(c.FD)
		b.ledger.isGone(&c)
	case clientip.ErrSilent, clientip.ErrPartial:
		if p, err := b.enter(c, b.unplaced(&c), b.half()); err == nil {
			go b.waitForClient(p)
		} else if why == clientip.ErrSilent {
			b.refuser.refuse(c, NoSlot, errCrowdedSilent)
		} else {
			b.refuser.refuse(c, NoSlot, errCrowded)
		}
	default:
		b.refuser.refuse(c, NoSlot, why)
	}
}

// waitForClient is the life of a connection until its client is known.
func (b *Balancer) waitForClient(p *parked) {
	file := os.NewFile(uintptr(p.FD), "parked connection")
	client, err := b.clients.Wait(b.draining, file, &p.Handoff, p.addressed)
	if err == clientip.ErrPartial && b.draining.Err() != nil {
		err = errStopping
	}
	stays := false
	if err == nil {
		stays, err = b.place(p, file, client)
	}
	switch {
	case err == clientip.ErrGone:
		b.leave(p, file)
	case err != nil:
		b.refuser.end(p, b.waitlist, file, NoSlot, err)
	case stays:
		b.waitForSlot(p)
	}
}

// leave ends a parked connection that its client has ended.
func (b *Balancer) leave(p *parked, file *os.File) {
	reexec.Lock.RLock()
	b.ledger.isGone(&p.connection)
	b.waitlist.leave(p)
	reexec.Lock.RUnlock()
	closeConnection(file)
}

// place goes on with a parked connection whose client is known now. Stays tells whether it is
// parked still, for want of its worker. The error is why it is to be refused.
func (b *Balancer) place(p *parked, file *os.File, client clientip.Client) (stays bool, err error) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	// Closing the file takes it out of Go's poller, which would go on reporting
	// the connection while a worker has it.
	fd, err := sock.Duplicate(file)
	if err != nil {
		return true, errNoFile
	}
	p.FD, p.client = fd, client
	b.spread(&p.connection)
	b.table.count(&p.connection)
	file.Close()
	if _, err := b.deliver(&p.connection, 0); err == nil {
		b.waitlist.leave(p)
		return false, nil
	}
	// It never leaves the waitlist meanwhile, so that it can have the last place there.
	key := b.keyOf(&p.connection)
	if err := b.waitlist.rekey(p, key, b.perSlot()); err != nil {
		b.waitlist.leave(p)
		b.refuser.refuse(p.connection, key.slot, err)
		return false, nil
	}
	return true, nil
}
