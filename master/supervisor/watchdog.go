package supervisor

import (
	"fmt"
	"time"
)

// beats is how many times a worker that serves is pinged in the time of the watchdog.
const beats = 4

// startPinging begins to ping a worker that serves from now on, if there is a watchdog.
func (s *Supervisor) startPinging(w *worker) {
	if s.cfg.Watchdog > 0 {
		w.heard = time.Now()
		w.beat = w.heard.Add(s.cfg.Watchdog / beats)
	}
}

// ping asks a worker whether it still takes work: one beat.
//
// Beats are counted, not the time since the worker was heard: while this process does not run
// itself, because it was stopped or the machine was asleep, answers lie unread and no
// beat is missed but one.
func (s *Supervisor) ping(w *worker) {
	now := time.Now()
	w.beat = now.Add(s.cfg.Watchdog / beats)
	before := w.missed
	w.silent.link = missed(w.silent.link, w.link.Ping())
	w.silent.notices = missed(w.silent.notices, w.notifies())
	if w.notices.Said().Trigger {
		w.silent.notices = beats
	}
	w.missed = max(w.silent.link, w.silent.notices)
	switch {
	case w.missed >= beats && before < beats:
		w.cached = nil
		s.hung(w)
	case w.missed < beats && before >= beats:
		w.heard, w.cached = now, nil
		s.emit(w.event(WorkerAnswers))
	case w.missed == 0:
		w.heard = now
	}
}

// missed returns how many beats in a row were without a sign.
func missed(before int, alive bool) int {
	if alive {
		return 0
	}
	return min(before+1, beats)
}

// hung: the worker has not answered for the time of the watchdog. It cannot drain: if it is to be replaced, it is
// treated as one that has died. On probation it fails in any case. One that lingers is killed instead of being replaced.
func (s *Supervisor) hung(w *worker) {
	e := w.event(WorkerHung)
	onProbation := w.slot.standby != nil
	e.Silent, e.Replaced, e.LastWords = w.heard, w.state == Serving && (s.cfg.ReplaceHung || onProbation), w.output.LastWords(0)
	s.emit(e)
	if w.state == Lingering && s.cfg.ReplaceHung {
		s.kill(w)
	}
	if !e.Replaced {
		return
	}
	if s.cfg.ReplaceHung {
		s.kill(w)
	}
	s.vacate(w, w.withLastWords(fmt.Errorf("worker did not answer for %v (watchdog)", s.cfg.Watchdog), e.LastWords))
	if !s.cfg.ReplaceHung {
		s.drain(w, s.cfg.DrainTimeout)
	}
}

// silentSince returns since when the worker has not answered; zero if it does, or is not pinged.
func (w *worker) silentSince() (since time.Time) {
	if w.missed >= beats {
		since = w.heard
	}
	return since
}
