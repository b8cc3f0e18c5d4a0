package supervisor

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// ErrFinishing: a worker has closed its listeners by itself, and finishes (Finishing). It has not failed.
var ErrFinishing = errors.New("it has closed its listeners, and finishes")

// Finishing says that the worker with a link takes no more work and finishes by itself. Its slot gets
// another; it is not told to finish, since some servers take being told again for an order to end at
// once.
func (s *Supervisor) Finishing(link Link) {
	s.post(func() {
		for w := range s.workers {
			if w.link == link {
				s.finishing(w)
			}
		}
	})
}

func (s *Supervisor) finishing(w *worker) {
	if w.state == Serving || w.state == Standby || w.state == Lingering {
		w.selfDraining = true
		s.leaveSlot(w, ErrFinishing)
		w.enter(Draining, max(w.timeLeft(s.drainTimeout(w.seat)), 1))
	}
}

// linkLeft: the link reports that the worker takes no more work, although it lives.
func (s *Supervisor) linkLeft(w *worker) {
	switch w.state {
	case Starting, Serving, Standby, Lingering:
	default:
		return
	}
	s.leaveSlot(w, w.link.Err())
	if w.state == Starting {
		s.terminate(w) // it was given nothing that it could finish
	} else {
		s.drain(w, s.drainTimeout(w.seat))
	}
}

// leaveSlot takes a worker that takes no more work out of its slot, which gets another.
func (s *Supervisor) leaveSlot(w *worker, why error) {
	w.left = w.state == Serving
	e := w.event(WorkerLeft)
	e.Err, e.Was, e.LastWords = why, w.state, w.output.LastWords(0)
	s.emit(e)
	s.vacate(w, w.withLastWords(fmt.Errorf("worker left: %w", why), e.LastWords))
}

// finishedAll: the worker has done all that it had, and goes on running.
func (s *Supervisor) finishedAll(w *worker) {
	if w.state == Draining {
		s.terminate(w)
	}
}

// ended: the first process has. The others of its group have what it had, such as its slot's listeners:
// they are told to finish, and do not outlive KillTimeout, unless they were told before.
func (s *Supervisor) ended(w *worker, exit Exit, rest []int, words string) {
	e := w.event(WorkerExited)
	e.Exit, e.Was, e.Rest, e.LastWords = exit, w.state, rest, words
	before := w.ended
	w.ended, w.finished = true, e.Was == Serving && !e.Failed()
	if w.left && exit == (Exit{}) {
		w.slot.failures = 0 // it had enough, and has finished: its successor has not to wait for that
	}
	if len(rest) == 0 {
		s.gone(w)
	}
	if before { // the program that left it to us has seen to it
		if len(rest) == 0 {
			s.emit(w.event(WorkerGone))
		}
		return
	}
	s.emit(e)
	s.vacate(w, whyExited(w, e))
	switch {
	case len(rest) == 0:
	case e.Was == Starting, e.Was == Draining && !w.link.DrainsGroup():
		s.terminate(w)
	case e.Was == Serving || e.Was == Standby || e.Was == Lingering:
		w.enter(Stopping, s.killTimeout())
		w.link.Drain()
	}
}

// whyExited says how a worker has ended, and what its link knows of that.
func whyExited(w *worker, e Event) error {
	why := fmt.Errorf("worker exited with %v", e.Exit)
	if e.Was == Starting {
		why = fmt.Errorf("%w before it was ready", why)
	}
	select {
	case <-w.link.Left():
		if err := w.link.Err(); !errors.Is(err, io.EOF) { // which says no more than that it ended
			why = fmt.Errorf("%w (%w)", why, err)
		}
	default:
	}
	return w.withLastWords(why, e.LastWords)
}

// gone: nobody is left of the worker. It is reaped in the loop: what is not reaped yet, another
// program can be left with.
func (s *Supervisor) gone(w *worker) {
	w.enter(Exited, 0)
	s.release(w)
	w.process.Wait()
}

// release closes what belongs to a worker, once: one that was given up may end after all.
func (s *Supervisor) release(w *worker) {
	if _, ok := s.workers[w]; ok {
		delete(s.workers, w)
		s.closeLink(w.link)
		w.output.Close()
		w.notices.Close()
	}
}

// closeLink closes a link in a goroutine of its own.
func (s *Supervisor) closeLink(link Link) {
	s.closing++
	s.running.Go(func() {
		link.Close()
		s.post(func() {
			s.closing--
			s.checkQuiet()
		})
	})
}

// overdue: a state has lasted longer than it may.
func (s *Supervisor) overdue(w *worker) {
	switch w.state {
	case Starting:
		if w.process == nil {
			s.startLate(w)
			return
		}
		e := w.event(WorkerNotReady)
		e.LastWords = w.output.LastWords(0)
		s.emit(e)
		s.terminate(w)
		s.vacate(w, w.withLastWords(fmt.Errorf("worker was not ready within %v", s.cfg.ReadyTimeout), e.LastWords))
	case Standby:
		s.endProbation(w.slot)
		s.stepReload()
	case Lingering:
		s.endLinger(w, lingerTimeout)
	case Draining:
		s.terminate(w)
	case Stopping:
		s.kill(w)
	case Killed:
		// It hangs in the kernel and will not run again, or its start hangs: give it up.
		if w.process == nil {
			s.logLater(hclog.Warn, "worker's start has not come to an end, and is not waited for any more", "slot", w.seat.Slot, "generation", w.seat.Generation)
		} else {
			s.logLater(hclog.Error, "worker cannot be killed", "slot", w.seat.Slot, "pid", w.pid(), "generation", w.seat.Generation)
		}
		s.release(w)
	}
}

// drain tells a worker to finish, and gives it time.
func (s *Supervisor) drain(w *worker, timeout time.Duration) {
	timeout = w.timeLeft(timeout)
	if timeout <= 0 {
		s.terminate(w)
		return
	}
	w.enter(Draining, timeout)
	w.link.Drain()
	s.emit(w.event(WorkerDraining))
}

// terminate sends SIGTERM, as soon as there is a process.
func (s *Supervisor) terminate(w *worker) {
	w.enter(Stopping, s.killTimeout())
	if w.process != nil {
		s.sendTerm(w)
	}
}

func (s *Supervisor) sendTerm(w *worker) {
	w.link.Drain()
	w.process.Signal(syscall.SIGTERM)
	s.emit(w.event(WorkerTerminated))
}

// killTimeout is the time from SIGTERM to SIGKILL, never zero.
func (s *Supervisor) killTimeout() time.Duration { return max(s.cfg.KillTimeout, 1) }

// kill sends SIGKILL, as soon as there is a process.
func (s *Supervisor) kill(w *worker) {
	w.enter(Killed, reapTimeout)
	if w.process != nil {
		s.sendKill(w)
	}
}

func (s *Supervisor) sendKill(w *worker) {
	w.process.Signal(syscall.SIGKILL)
	s.emit(w.event(WorkerKilled))
}

// vacate takes a worker that can no longer fill its slot out of it, and sees to
// a successor.
func (s *Supervisor) vacate(w *worker, why error) {
	sl := w.slot
	switch w {
	case sl.current:
		w.recordEnd(why)
		s.replyWaiting(w, why)
		if sl.standby != nil {
			s.restoreStandby(sl)
			s.reloadFailed(w, why)
			return
		}
		sl.current = nil
		if sl.number < s.published {
			s.cfg.Slots.Empty(sl.number)
		}
	case sl.standby: // it cannot come back any more
		sl.standby = nil
		s.replyWaiting(sl.current, nil)
		s.stepReload()
		return
	case sl.next:
		w.recordEnd(why)
		sl.next = nil
		s.replyWaiting(w, why)
	default:
		return // replaced before, or its slot was removed
	}
	switch {
	case isOurFault(why):
		s.startSoon(sl)
	case w.finished:
		s.renew(sl, w)
	default:
		s.respawn(sl, w)
	}
	s.reloadFailed(w, why)
}

// recordEnd writes down why a worker's time in its slot, or before, has ended.
func (w *worker) recordEnd(why error) {
	end := &End{Generation: w.seat.Generation, At: time.Now(), Why: strings.TrimPrefix(why.Error(), "worker "), LastWords: lastWordsOf(why)}
	if w.process != nil {
		end.PID = w.pid()
	} else {
		end.Why = "could not be started: " + end.Why
	}
	w.slot.lastEnd = end
}

// respawn decides when a slot that has nobody left gets its next worker. Even after one that has not died young there
// is no more than one start in BackoffMin, however short MinUptime is.
func (s *Supervisor) respawn(sl *slot, before *worker) {
	if sl.current != nil || sl.next != nil {
		return
	}
	young := before.readyAt.IsZero() || time.Since(before.readyAt) < s.cfg.MinUptime
	if !young {
		sl.failures = 0
	}
	delay := s.cfg.backoff(sl.failures)
	if delay > 0 && (s.cfg.MaxRestarts == 0 || sl.failures < s.cfg.MaxRestarts) {
		s.logLater(hclog.Warn, "workers keep dying young, next start is delayed", "slot", sl.number, "attempt", sl.failures, "delay", delay.String())
	}
	if s.cfg.MaxRestarts > 0 && sl.failures >= s.cfg.MaxRestarts {
		s.giveUp(sl)
		return
	}
	sl.failures++
	sl.restarts++
	sl.respawnAt = time.Now().Add(delay)
	if earliest := before.started.Add(s.cfg.BackoffMin); !young && sl.respawnAt.Before(earliest) {
		sl.respawnAt = earliest
	}
}

// giveUp ends all: more workers of a slot than may have died young in a row.
func (s *Supervisor) giveUp(sl *slot) {
	if s.gaveUp != nil || s.stopping {
		return
	}
	why := errors.New(sl.lastEnd.Why)
	s.gaveUp = fmt.Errorf("%w: slot %d, %d in a row; the last one %w", ErrGaveUp, sl.number, sl.failures+1, why)
	s.emit(Event{Kind: GaveUp, Seat: Seat{Slot: sl.number, Generation: sl.generation}, Err: why, LastWords: sl.lastEnd.LastWords})
	s.stop()
}

// startSoon starts the next worker of a slot that has nobody left, when there may be descriptors again.
func (s *Supervisor) startSoon(sl *slot) {
	if sl.current == nil && sl.next == nil {
		sl.respawnAt = time.Now().Add(s.cfg.BackoffMin)
	}
}

// renew starts the next worker of a slot whose worker had enough: no failure, so without delay, but
// no more than one in BackoffMin.
func (s *Supervisor) renew(sl *slot, before *worker) {
	if sl.current != nil || sl.next != nil {
		return
	}
	sl.failures = 0
	sl.restarts++
	sl.respawnAt = before.started.Add(s.cfg.BackoffMin)
}

// backoff is how long to wait after so many failures in a row.
func (c *Config) backoff(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	delay := c.BackoffMin
	for ; failures > 1 && delay < c.BackoffMax; failures-- {
		delay *= 2
	}
	return min(delay, c.BackoffMax)
}
