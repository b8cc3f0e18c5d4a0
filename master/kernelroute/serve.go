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

// Serve waits until accepting ends, and then, within the patience and until killed ends, until
// those who were connected before have been accepted.
func (s *Route) Serve(accepting, killed context.Context, patience time.Duration) error {
	s.mu.Lock()
	for _, g := range s.groups {
		s.balancer.Config().Logger.Info("listening", "address", g.Addr().String(), "route", "kernel")
	}
	s.mu.Unlock()
	closedLook := time.NewTicker(closedInterval)
	defer closedLook.Stop()
	for look := time.NewTimer(repairMin); accepting.Err() == nil; {
		select {
		case <-look.C:
			began := time.Now()
			s.repair()
			look.Reset(min(max(repairShare*time.Since(began), repairMin), repairMax))
		case <-closedLook.C:
			for _, link := range s.lookForClosed() {
				s.finishing(link)
			}
		case <-accepting.Done():
		}
	}
	deadline := time.Now().Add(balancer.LastGrace + patience)
	s.mu.Lock()
	var err error
	for _, g := range s.groups {
		err = errors.Join(err, g.Silence())
	}
	s.mu.Unlock()
	time.Sleep(balancer.LastGrace) // for handshakes that are under way (acceptor.run)
	for s.waiting() > 0 && time.Now().Before(deadline) && killed.Err() == nil {
		time.Sleep(queuePoll)
	}
	return err
}

// waiting returns how many connections nobody has accepted.
func (s *Route) waiting() (sum int) {
	s.each(func(_ *os.File, waiting int) error { sum += waiting; return nil })
	return sum
}

// Queue returns how many connections wait for a slot's workers to accept.
func (s *Route) Queue(slot int) (sum int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.berths {
		if b.slot == slot {
			sum += s.queued(b)
		}
	}
	return sum
}

// each calls f for each listener that there ever was.
func (s *Route) each(f func(listener *os.File, waiting int) error) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
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

// Close refuses those whom nobody accepted, and closes the listeners. Call it when the
// workers have ended.
func (s *Route) Close(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.acceptors.stopAll()
	s.each(func(listener *os.File, waiting int) (err error) {
		if waiting > 0 {
			err = s.refuser.TakeBacklog(listener)
		}
		// An accept that waits, since somebody has made the listener blocking, ends only so.
		sock.Control(listener, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
		return err
	})
	s.acceptors.running.Wait()
	s.refuser.Shutdown(ctx)
	for _, g := range s.groups {
		g.Close()
	}
}
