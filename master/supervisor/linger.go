package supervisor

import (
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Why a worker lingers no longer.
const (
	lingerIdle    = "no request has named it for so long"
	lingerTimeout = "it has lingered for as long as it may"
	lingerAsked   = "that was asked for"
)

// linger leaves a worker that was replaced as it is while clients may come back to it. If they will not, it drains.
func (s *Supervisor) linger(w *worker) {
	now := time.Now()
	var until time.Time
	if s.cfg.LingerUntil != nil && s.drainTimeout(w.seat) > 0 {
		until = s.cfg.LingerUntil(w.link, now)
	}
	if !until.After(now) {
		s.drain(w, s.drainTimeout(w.seat))
		return
	}
	w.enter(Lingering, s.drainTimeout(w.seat))
	w.lingerUntil(until)
	s.startPinging(w)
	e := w.event(WorkerLingering)
	e.Until = w.until
	s.emit(e)
}

// lingerUntil says when to ask again whether clients may come back.
func (w *worker) lingerUntil(t time.Time) {
	if t.After(w.deadline) {
		t = w.deadline
	}
	w.until, w.cached = t, nil
}

// stillLingers asks whether clients may come back to a worker later than it was said before.
func (s *Supervisor) stillLingers(w *worker) {
	var until time.Time
	if s.cfg.LingerUntil != nil {
		until = s.cfg.LingerUntil(w.link, w.since)
	}
	if until.After(time.Now()) {
		w.lingerUntil(until)
	} else {
		s.endLinger(w, lingerIdle)
	}
}

// endLinger has a worker that lingers drain.
func (s *Supervisor) endLinger(w *worker, why string) {
	s.logLater(hclog.Info, "worker lingers no longer, and drains", "slot", w.seat.Slot, "pid", w.pid(), "generation", w.seat.Generation,
		"lingered", time.Since(w.since).Round(time.Millisecond).String(), "reason", why, "change_with", lingerFlags)
	s.drain(w, s.drainTimeout(w.seat))
}

// lingerFlags are those that say how long workers linger.
const lingerFlags = "--session-idle, --drain-affinity, --drain-timeout"

// timeLeft returns how much of a timeout a worker has. That of one that lingers began when it was replaced.
func (w *worker) timeLeft(timeout time.Duration) time.Duration {
	if w.state == Lingering {
		timeout = min(timeout, time.Until(w.deadline))
	}
	return timeout
}

// DrainLingering has workers that linger drain now, those in whose seats it is asked for, and returns how many they
// are. It does not wait for them.
func (s *Supervisor) DrainLingering(asked func(Seat) bool) (n int, err error) {
	err = s.do(func() error {
		for w := range s.workers {
			if w.state == Lingering && asked(w.seat) {
				s.endLinger(w, lingerAsked)
				n++
			}
		}
		return nil
	})
	return n, err
}

// errNoRoom says that no more processes may run, what those do that are in no slot any more, and the remedy.
func (s *Supervisor) errNoRoom() error {
	lingering, draining := 0, 0
	for w := range s.workers {
		switch w.state {
		case Lingering:
			lingering++
		case Draining:
			draining++
		}
	}
	var they, remedies []string
	if lingering > 0 {
		they = append(they, fmt.Sprintf("%d linger for their clients", lingering))
		remedies = append(remedies, "end that with handfast drain --now")
	}
	if draining > 0 || lingering == 0 {
		they = append(they, "some still drain")
		remedies = append(remedies, "wait for them, or shorten the drain timeout, or bound them (--max-draining)")
	}
	return fmt.Errorf("%d worker processes run, and no more may, of which %s; %s", s.cfg.MaxProcesses, strings.Join(they, ", and "), strings.Join(remedies, "; "))
}
