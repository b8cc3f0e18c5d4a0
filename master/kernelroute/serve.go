package kernelroute

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reuseport"
)

// Serve looks after the listeners until accepting ends. Then it stops handshakes, and waits, within the patience and
// until killed ends, until workers or the master have accepted the connections that there are.
func (r *Route) Serve(accepting, killed context.Context, patience time.Duration) error {
	r.mu.Lock()
	for _, g := range r.groups {
		r.logger.Info("listening", "address", g.Addr().String(), "route", "kernel")
	}
	r.mu.Unlock()
	closedLook := time.NewTicker(closedInterval)
	defer closedLook.Stop()
	for look := time.NewTimer(repairMin); accepting.Err() == nil; {
		select {
		case <-look.C:
			began := time.Now()
			r.repair()
			look.Reset(min(max(repairShare*time.Since(began), repairMin), repairMax))
		case <-closedLook.C:
			for _, link := range r.lookForClosed() {
				r.finishing(link)
			}
		case <-r.queuesAsked:
			r.lookAtQueues()
		case <-accepting.Done():
		}
	}
	deadline := time.Now().Add(balancer.LastGrace + patience)
	r.mu.Lock()
	var err error
	for _, g := range r.groups {
		err = errors.Join(err, g.StopHandshakes())
	}
	r.mu.Unlock()
	time.Sleep(balancer.LastGrace) // for handshakes that are under way
	for r.waiting() > 0 && time.Now().Before(deadline) && killed.Err() == nil {
		time.Sleep(queuePoll)
	}
	return err
}

// waiting returns how many connections nobody has accepted.
func (r *Route) waiting() (sum int) {
	r.each(func(_ *os.File, waiting int) error { sum += waiting; return nil })
	return sum
}

// Queue returns how many connections wait for a slot's workers to accept.
func (r *Route) Queue(slot int) (sum int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.berths {
		if b.slot == slot {
			sum += r.queued(b)
		}
	}
	return sum
}

// each calls f for each listener, also of berths that no worker has.
func (r *Route) each(f func(listener *os.File, waiting int) error) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.groups {
		for i := range g.Members() {
			waiting, _, queueErr := g.Queue(i)
			if !errors.Is(queueErr, reuseport.ErrNotListening) {
				err = errors.Join(err, queueErr)
			}
			err = errors.Join(err, f(g.Listener(i), waiting))
		}
	}
	return err
}

// Close refuses the connections that nobody has accepted, and closes the listeners. Call it when the workers have
// ended.
func (r *Route) Close(ctx context.Context) {
	r.mu.Lock()
	r.final = r.total()
	r.closed = true
	r.mu.Unlock()
	r.acceptors.stopAll()
	r.each(func(listener *os.File, waiting int) (err error) {
		if waiting > 0 {
			err = r.refuser.TakeBacklog(listener)
		}
		// This alone ends an accept that waits, which it does if a worker has made the listener blocking.
		sock.Control(listener, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
		return err
	})
	r.acceptors.running.Wait()
	r.refuser.Shutdown(ctx)
	for _, g := range r.groups {
		g.Close()
	}
	r.programs.Close()
}
