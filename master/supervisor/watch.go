package supervisor

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// lastMoment is how long a worker whose link reports that it left is given to end: then its
	// exit says why.
	lastMoment = 250 * time.Millisecond
	// restDelay is how long the others of its group are given to end with the first process, as
	// most do, before they count as left behind.
	restDelay = 50 * time.Millisecond
	// Then they are looked for after restPoll, and after twice as long each time, to maxRestPoll.
	restPoll    = 10 * time.Millisecond
	maxRestPoll = 500 * time.Millisecond
)

// observe starts the two goroutines that observe a worker: its process, and its link.
func (s *Supervisor) observe(w *worker) {
	isReady, probed := w.link.Ready(), make(chan struct{})
	if w.state != Starting {
		isReady, probed = nil, nil
	}
	go s.awaitEnd(w)
	s.running.Go(func() { s.watchLink(w, isReady, probed) })
}

// awaitEnd waits for the end of the process, and of its group. Run does not wait for it, since there are processes that
// cannot be killed.
func (s *Supervisor) awaitEnd(w *worker) {
	exit := w.process.Await()
	close(w.exited)
	words := w.output.LastWords(wordsPatience)
	rest, poll := w.process.Rest(), restPoll
	for waited := time.Duration(0); len(rest) > 0 && waited < restDelay; waited += poll {
		time.Sleep(poll)
		rest = w.process.Rest()
	}
	first := rest
	if s.post(func() { s.ended(w, exit, first, words) }) && len(rest) == 0 {
		return
	}
	for finished := w.link.Finished(); len(rest) > 0; {
		select {
		case <-finished:
			finished = nil
			s.post(func() { s.finishedAll(w) })
		case <-time.After(poll):
			poll = min(2*poll, maxRestPoll)
			rest = w.process.Rest()
		case <-s.done:
			rest = nil
		}
	}
	if !s.post(func() { s.gone(w); s.emit(w.event(WorkerGone)) }) {
		w.process.Wait()
	}
}

// watchLink passes on what the link reports, and that the worker is ready when it has also passed
// the probe.
func (s *Supervisor) watchLink(w *worker, ready <-chan struct{}, probed chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ReadyTimeout)
	defer cancel()
	left, leaves := w.link.Left(), (<-chan time.Time)(nil)
	finished, stopping := w.link.Finished(), w.notices.Stopping()
	for probed != nil || left != nil || leaves != nil || finished != nil || stopping != nil {
		select {
		case <-ready:
			ready = nil
			s.running.Go(func() { s.probe(ctx, w, probed) })
		case <-probed:
			probed = nil
			s.post(func() { s.ready(w) })
		case <-left:
			ready, left = nil, nil
			leaves = time.After(lastMoment)
		case <-leaves:
			leaves = nil
			s.post(func() { s.linkLeft(w) })
		case <-finished:
			finished = nil
			s.post(func() { s.finishedAll(w) })
		case <-stopping:
			stopping = nil
			s.post(func() { s.finishing(w) })
		case <-w.exited:
			return
		case <-s.done:
			return
		}
	}
}

// probe closes passed, unless ctx ends before.
func (s *Supervisor) probe(ctx context.Context, w *worker, passed chan<- struct{}) {
	if s.cfg.NeedsNotice {
		select {
		case <-w.notices.Ready():
		case <-ctx.Done():
			s.logLater(hclog.Info, "worker has not said READY=1", "slot", w.seat.Slot, "pid", w.pid(), "generation", w.seat.Generation, "err", context.Cause(ctx))
			return
		}
	}
	if s.cfg.Probe != nil {
		if err := s.cfg.Probe(ctx, w.seat); err != nil {
			s.logLater(hclog.Info, "worker has not passed its probe", "slot", w.seat.Slot, "pid", w.pid(), "generation", w.seat.Generation, "err", err)
			return
		}
	}
	close(passed)
}

// ready: the worker takes its slot over, and the one that was there drains.
func (s *Supervisor) ready(w *worker) {
	if w.state == Draining && w.readyAt.IsZero() { // it had begun when it was cancelled
		w.readyAt = time.Now()
		w.setDeadline(w.since.Add(s.drainTimeout(w.seat)))
	}
	if w.state != Starting {
		return // too late: it is being replaced already
	}
	sl, old := w.slot, w.slot.current
	s.endProbation(sl) // if old was on probation itself: it is overtaken
	w.enter(Serving, 0)
	w.readyAt = time.Now()
	s.startPinging(w)
	s.startHealth(w)
	sl.current, sl.next, sl.generation = w, nil, w.seat.Generation
	s.fill(sl)
	s.emit(w.event(WorkerReady))
	if old != nil {
		s.standBy(old, s.cfg.Probation)
	}
	if sl.standby == nil {
		s.replyWaiting(w, nil)
	}
	s.stepReload()
}
