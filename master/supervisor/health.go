package supervisor

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Health says how workers that serve are asked, again and again, whether they are healthy.
type Health struct {
	// Check asks a worker, and returns nil if it is healthy. It must return when ctx ends. It has a goroutine of its own. nil: nobody is asked.
	Check    func(context.Context, Seat) error
	Interval time.Duration // from an answer to the next question, and from ready to the first; more than 0
	Timeout  time.Duration // for an answer; more than 0
	Failures int           // in a row that make a worker unhealthy; more than 0
	Replace  bool          // unhealthy workers are recycled; else that is told, and nothing more
}

// DefaultHealth has everything but Check.
func DefaultHealth() Health {
	return Health{Interval: 10 * time.Second, Timeout: time.Second, Failures: 3}
}

func (h *Health) validate() error {
	if h.Check != nil && (h.Interval <= 0 || h.Timeout <= 0 || h.Failures <= 0) {
		return fmt.Errorf("supervisor: health is asked for each %v, for %v, up to %d times: want more than 0", h.Interval, h.Timeout, h.Failures)
	}
	return nil
}

// health is what is known of a worker.
type health struct {
	next   time.Time // when to ask; zero: it is being asked, or not to be
	asking bool
	failed int       // answers in a row
	since  time.Time // it is unhealthy; zero: it is not
}

// startHealth begins to ask a worker that serves from now on.
func (s *Supervisor) startHealth(w *worker) {
	if s.cfg.Health.Check != nil && !w.health.asking {
		w.health.next = time.Now().Add(s.cfg.Health.Interval)
	}
}

// askHealth asks a worker, in a goroutine.
func (s *Supervisor) askHealth(w *worker) {
	w.health.next, w.health.asking = time.Time{}, true
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Health.Timeout)
	s.running.Go(func() {
		defer cancel()
		answered := make(chan struct{})
		defer close(answered)
		go func() {
			select {
			case <-answered:
			case <-w.exited:
			case <-s.done:
			}
			cancel()
		}()
		err := s.cfg.Health.Check(ctx, w.seat)
		s.post(func() { s.healthAnswered(w, err) })
	})
}

func (s *Supervisor) healthAnswered(w *worker, err error) {
	h := &w.health
	h.asking = false
	if w.state != Serving || w.ended {
		return
	}
	h.next = time.Now().Add(s.cfg.Health.Interval)
	if err == nil {
		if h.failed = 0; !h.since.IsZero() {
			h.since, w.recycle, w.cached = time.Time{}, nil, nil
			s.emit(w.event(WorkerHealthy))
		}
		return
	}
	if h.failed++; h.failed < s.cfg.Health.Failures {
		s.logLater(hclog.Debug, "worker has failed its health check", "slot", w.seat.Slot, "pid", w.pid(), "generation", w.seat.Generation, "failures", h.failed, "err", err)
		return
	}
	if h.since.IsZero() {
		h.since, w.cached = time.Now(), nil
		e := w.event(WorkerUnhealthy)
		e.Err, e.Replaced, e.LastWords = err, s.cfg.Health.Replace, w.output.LastWords(0)
		s.emit(e)
	}
	if s.cfg.Health.Replace {
		w.wishRecycled(fmt.Errorf("it is not healthy: %w", err))
	}
}
