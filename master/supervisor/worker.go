package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// slot is one fixed place. A client belongs to a slot, a worker fills it.
type slot struct {
	number     int
	generation int       // of the worker that filled it last
	current    *worker   // in the slot, or nil
	next       *worker   // starting, to take the slot over; or nil
	standby    *worker   // the one before current, which is on probation; or nil
	failures   int       // workers in a row that died young
	respawnAt  time.Time // when to start the next one; zero: not waiting
	restarts   int       // how often that was needed
	lastEnd    *End
}

// worker is one process, from its start until it is reaped.
type worker struct {
	seat     Seat
	slot     *slot
	state    State
	since    time.Time // it is in this state
	link     Link
	process  Process
	output   Output
	started  time.Time
	readyAt  time.Time
	deadline time.Time     // when the state has lasted too long; zero: never
	exited   chan struct{} // closed when the first process has ended
	ended    bool          // likewise; its link and number are kept until all of its group have
	finished bool          // it was ready, and has ended by itself with status 0
	left     bool          // it was ready, and has left by itself
	unasked  bool          // likewise, and finishes without having been told to
	shown    *WorkerStatus // as it was last shown; nil: something has changed since
	waiting  []chan error  // who wants to know how its start ends

	beat   time.Time // when to ask it again whether it is there; zero: not at all
	missed int       // beats in a row without a sign of it
	heard  time.Time // when there was one last, if it is asked
}

// enter changes the state; a zero timeout means no deadline.
func (w *worker) enter(next State, timeout time.Duration) {
	if !w.state.may(next) {
		panic(fmt.Sprintf("supervisor: worker of slot %d cannot go from %v to %v", w.seat.Slot, w.state, next))
	}
	w.state, w.since = next, time.Now()
	w.beat, w.missed = time.Time{}, 0
	w.setDeadline(time.Time{})
	if timeout > 0 {
		w.setDeadline(w.since.Add(timeout))
	}
}

// of tells whether the worker exists and is of a generation.
func (w *worker) of(generation int) bool {
	return w != nil && w.seat.Generation == generation
}

// spawn starts a worker that will take the slot over when it is ready.
func (s *Supervisor) spawn(sl *slot, generation int) error {
	sl.respawnAt = time.Time{}
	seat := Seat{Slot: sl.number, Slots: len(s.slots), Generation: generation}
	w := &worker{seat: seat, slot: sl, exited: make(chan struct{})}
	variables, err := s.cfg.Setting.environ(seat, s.cfg.Rights)
	if err == nil {
		w.link, err = s.cfg.NewLink(seat)
	}
	if err != nil {
		w.over(err)
		s.emit(Event{Kind: WorkerStartFailed, Seat: seat, Err: err})
		return err
	}
	if w.output, err = s.openOutput(seat); err != nil {
		s.closeLink(w.link)
		w.over(err)
		s.emit(Event{Kind: WorkerStartFailed, Seat: seat, Err: err})
		return err
	}
	command := seat.expand(s.cfg.Command)
	if launcher, ok := w.link.(Launcher); ok {
		command = launcher.Launch(command)
	} else if _, ok := s.cfg.Setting.path(); ok { // which package os/exec knows nothing of
		if path, err := s.cfg.Setting.Find(command[0]); err == nil {
			command[0] = path
		}
	}
	stdout, stderr := w.output.Files()
	w.process, err = s.cfg.Start(Spec{
		Command:   command,
		Directory: s.cfg.Setting.Directory,
		Env:       slices.Concat(s.cfg.Rights.Env, variables, seat.env(), w.link.Env(), s.cfg.Env),
		Files:     w.link.Files(),
		Rights:    s.cfg.Rights,
		Stdout:    stdout,
		Stderr:    stderr,
	})
	if err != nil {
		s.closeLink(w.link)
		w.output.Close()
		w.over(err)
		s.emit(Event{Kind: WorkerStartFailed, Seat: seat, Link: w.link, Err: err})
		return err
	}
	w.output.Started(w.process.PID())
	if observer, ok := w.link.(Observer); ok {
		observer.Started(w.process)
	}
	s.workers[w] = struct{}{}
	sl.next = w
	w.started = time.Now()
	w.since, w.deadline = w.started, w.started.Add(s.cfg.ReadyTimeout)
	s.emit(w.event(WorkerStarted))
	s.follow(w)
	return nil
}

// follow starts the goroutines of a process.
func (s *Supervisor) follow(w *worker) {
	isReady, probed := w.link.Ready(), make(chan struct{})
	if w.state != Starting {
		isReady, probed = nil, nil
	}
	go s.reap(w)
	s.running.Go(func() { s.watch(w, isReady, probed) })
}

func (seat Seat) env() []string {
	n := strconv.Itoa(seat.Slot)
	return []string{
		"HANDFAST_SLOT=" + n,
		"HANDFAST_SLOTS=" + strconv.Itoa(seat.Slots),
		"HANDFAST_GENERATION=" + strconv.Itoa(seat.Generation),
		"WORKER_ID=" + n,
	}
}

func (w *worker) event(kind EventKind) Event {
	return Event{Kind: kind, Seat: w.seat, PID: w.process.PID(), Link: w.link}
}

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

// reap waits for the end of the process, and of its group. Nobody waits for reap: a process that
// cannot be killed would keep Run from returning.
func (s *Supervisor) reap(w *worker) {
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
	for finished := w.finishes(); len(rest) > 0; {
		select {
		case <-finished:
			finished = nil
			s.post(func() { s.nothingLeft(w) })
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

// finishes returns what is closed when it has nothing left; nil if its link cannot see that.
func (w *worker) finishes() <-chan struct{} {
	if f, ok := w.link.(Finisher); ok {
		return f.Finished()
	}
	return nil
}

// watch passes on what the link reports, and that the worker is ready when it has also passed
// the probe.
func (s *Supervisor) watch(w *worker, ready <-chan struct{}, probed chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ReadyTimeout)
	defer cancel()
	left, leaves := w.link.Left(), (<-chan time.Time)(nil)
	finished := w.finishes()
	for probed != nil || left != nil || leaves != nil || finished != nil {
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
			s.post(func() { s.left(w) })
		case <-finished:
			finished = nil
			s.post(func() { s.nothingLeft(w) })
		case <-w.exited:
			return
		case <-s.done:
			return
		}
	}
}

// probe closes passed, unless ctx ends before.
func (s *Supervisor) probe(ctx context.Context, w *worker, passed chan<- struct{}) {
	if s.cfg.Probe != nil {
		if err := s.cfg.Probe(ctx, w.seat); err != nil {
			s.log.Info("worker has not passed its probe", "slot", w.seat.Slot, "pid", w.process.PID(), "generation", w.seat.Generation, "err", err)
			return
		}
	}
	close(passed)
}

// ready: the worker takes its slot over, and the one that was there drains.
func (s *Supervisor) ready(w *worker) {
	if w.state != Starting {
		return // too late: it is being replaced already
	}
	sl, old := w.slot, w.slot.current
	s.proved(sl) // if old was on probation itself: it is overtaken
	w.enter(Serving, 0)
	w.readyAt = time.Now()
	s.watchOver(w)
	sl.current, sl.next, sl.generation = w, nil, w.seat.Generation
	s.publish(sl)
	s.emit(w.event(WorkerReady))
	if old != nil {
		s.standBy(old, s.cfg.Probation)
	}
	if sl.standby == nil {
		s.tell(w, nil)
	}
	s.stepReload()
}

// ErrFinishing: a worker has closed its listeners by itself, and finishes (Finishing). It has not failed.
var ErrFinishing = errors.New("it has closed its listeners, and finishes")

// Finishing says that the worker with a link takes no more work and finishes by itself. Its slot gets
// another; it is not told to finish, since some servers take being told again for an order to end at
// once.
func (s *Supervisor) Finishing(link Link) {
	s.post(func() {
		for w := range s.workers {
			if w.link == link && (w.state == Serving || w.state == Standby) {
				w.unasked = true
				s.leave(w, ErrFinishing)
				w.enter(Draining, max(s.cfg.DrainTimeout, 1))
			}
		}
	})
}

// left: the worker lives, but takes no more work.
func (s *Supervisor) left(w *worker) {
	if w.state != Starting && w.state != Serving && w.state != Standby {
		return
	}
	s.leave(w, w.link.Err())
	if w.state == Starting {
		s.terminate(w) // it was given nothing that it could finish
	} else {
		s.drain(w, s.cfg.DrainTimeout)
	}
}

// leave gives the slot of a worker that takes no more work to another.
func (s *Supervisor) leave(w *worker, why error) {
	w.left = w.state == Serving
	e := w.event(WorkerLeft)
	e.Err, e.Was = why, w.state
	s.emit(e)
	s.vacate(w, fmt.Errorf("worker left: %w", why))
}

// nothingLeft: the worker has done all that it had, and goes on running.
func (s *Supervisor) nothingLeft(w *worker) {
	if w.state == Draining {
		s.terminate(w)
	}
}

// ended: the first process has. Who is left of its group has what it had, as its slot's listeners:
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
	case e.Was == Starting, e.Was == Draining && !drainsBySignal(w.link):
		s.terminate(w)
	case e.Was == Serving || e.Was == Standby:
		w.enter(Stopping, max(s.cfg.KillTimeout, 1))
		w.link.Drain()
	}
}

// drainsBySignal tells whether a link's Drain signals the whole group. It does for programs that know
// nothing of us; others are told by their mailbox or channel, which their children do not hear.
func drainsBySignal(link Link) bool {
	_, launches := link.(Launcher)
	return launches
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
	return w.saying(why, e.LastWords)
}

// gone: nobody is left of the worker. It is reaped in the loop: what is not reaped yet, another
// program can be left with.
func (s *Supervisor) gone(w *worker) {
	w.enter(Exited, 0)
	s.release(w)
	w.process.Wait()
}

// release closes the link, once: a worker that was given up may end after all.
func (s *Supervisor) release(w *worker) {
	if _, ok := s.workers[w]; ok {
		delete(s.workers, w)
		s.closeLink(w.link)
		w.output.Close()
	}
}

// closeLink does so in a goroutine.
func (s *Supervisor) closeLink(link Link) {
	s.closing.Add(1)
	s.running.Go(func() {
		defer s.closing.Add(-1)
		link.Close()
	})
}

// late: a state has lasted longer than it may.
func (s *Supervisor) late(w *worker) {
	switch w.state {
	case Starting:
		e := w.event(WorkerNotReady)
		e.LastWords = w.output.LastWords(0)
		s.emit(e)
		s.terminate(w)
		s.vacate(w, w.saying(fmt.Errorf("worker was not ready within %v", s.cfg.ReadyTimeout), e.LastWords))
	case Standby:
		s.proved(w.slot)
		s.stepReload()
	case Draining:
		s.terminate(w)
	case Stopping:
		s.kill(w)
	case Killed:
		// It hangs in the kernel and will not run again: give it up.
		s.log.Error("worker cannot be killed", "slot", w.seat.Slot, "pid", w.process.PID(), "generation", w.seat.Generation)
		s.release(w)
	}
}

// drain tells a worker to finish, and gives it time.
func (s *Supervisor) drain(w *worker, timeout time.Duration) {
	if timeout <= 0 {
		s.terminate(w)
		return
	}
	w.enter(Draining, timeout)
	w.link.Drain()
	s.emit(w.event(WorkerDraining))
}

// terminate sends SIGTERM.
func (s *Supervisor) terminate(w *worker) {
	w.enter(Stopping, max(s.cfg.KillTimeout, 1))
	w.link.Drain()
	w.process.Signal(syscall.SIGTERM)
	s.emit(w.event(WorkerTerminated))
}

// kill sends SIGKILL.
func (s *Supervisor) kill(w *worker) {
	w.enter(Killed, reapTimeout)
	w.process.Signal(syscall.SIGKILL)
	s.emit(w.event(WorkerKilled))
}

// vacate takes a worker that can no longer fill its slot out of it, and sees to
// a successor.
func (s *Supervisor) vacate(w *worker, why error) {
	sl := w.slot
	switch w {
	case sl.current:
		w.over(why)
		s.tell(w, why)
		if sl.standby != nil {
			s.putBack(sl)
			s.reloadFailed(w, why)
			return
		}
		sl.current = nil
		if sl.number < s.published {
			s.cfg.Slots.Empty(sl.number)
		}
	case sl.standby: // so nobody could be put back
		sl.standby = nil
		s.tell(sl.current, nil)
		s.stepReload()
		return
	case sl.next:
		w.over(why)
		sl.next = nil
		s.tell(w, why)
	default:
		return // replaced before, or its slot was removed
	}
	if w.finished {
		s.renew(sl, w)
	} else {
		s.respawn(sl, w.readyAt.IsZero() || time.Since(w.readyAt) < s.cfg.MinUptime)
	}
	s.reloadFailed(w, why)
}

// over writes down why a worker's time in its slot, or before, has ended.
func (w *worker) over(why error) {
	end := &End{Generation: w.seat.Generation, At: time.Now(), Why: strings.TrimPrefix(why.Error(), "worker "), LastWords: wordsOf(why)}
	if w.process != nil {
		end.PID = w.process.PID()
	} else {
		end.Why = "could not be started: " + end.Why
	}
	w.slot.lastEnd = end
}

// respawn decides when a slot that has nobody left gets its next worker.
func (s *Supervisor) respawn(sl *slot, young bool) {
	if sl.current != nil || sl.next != nil {
		return
	}
	if !young {
		sl.failures = 0
	}
	delay := s.cfg.backoff(sl.failures)
	if delay > 0 {
		s.log.Warn("workers keep dying young, next start is delayed", "slot", sl.number, "attempt", sl.failures, "delay", delay.String())
	}
	sl.failures++
	sl.restarts++
	sl.respawnAt = time.Now().Add(delay)
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
