package supervisor

import (
	"fmt"
	"time"
)

// beats is how many pings a worker that serves is asked in the time of the watchdog.
const beats = 4

// watchOver begins to ask a worker that serves now, if it is to be.
func (s *Supervisor) watchOver(w *worker) {
	if s.cfg.Watchdog > 0 {
		w.heard = time.Now()
		w.beat = w.heard.Add(s.cfg.Watchdog / beats)
	}
}

// ask is one beat.
//
// Beats are counted, not the time since the worker was heard: while this process does not run
// itself, because it was stopped or the machine was asleep, answers lie unread and no
// beat is missed but one.
func (s *Supervisor) ask(w *worker) {
	now := time.Now()
	w.beat = now.Add(s.cfg.Watchdog / beats)
	if w.link.Ping() {
		w.heard = now
		if w.missed >= beats {
			w.shown = nil
			s.emit(w.event(WorkerAnswers))
		}
		w.missed = 0
		return
	}
	if w.missed++; w.missed == beats {
		w.shown = nil
		s.hung(w)
	}
}

// hung: the worker has not answered for the time of the watchdog. It cannot drain: if it is to
// be replaced, that is as when it dies. On probation it fails, in any case.
func (s *Supervisor) hung(w *worker) {
	e := w.event(WorkerHung)
	onProbation := w.slot.standby != nil
	e.Silent, e.Replaced, e.LastWords = w.heard, s.cfg.ReplaceHung || onProbation, w.output.LastWords(0)
	s.emit(e)
	if !e.Replaced {
		return
	}
	if s.cfg.ReplaceHung {
		s.kill(w)
	}
	s.vacate(w, w.saying(fmt.Errorf("worker did not answer for %v (watchdog)", s.cfg.Watchdog), e.LastWords))
	if !s.cfg.ReplaceHung {
		s.drain(w, s.cfg.DrainTimeout)
	}
}

// silent returns since when the worker has not answered; zero if it does, or is not asked.
func (w *worker) silent() (since time.Time) {
	if w.missed >= beats {
		since = w.heard
	}
	return since
}
