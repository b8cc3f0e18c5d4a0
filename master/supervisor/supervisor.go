package supervisor

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// reapTimeout is how long to wait for a process that was sent SIGKILL.
const reapTimeout = 10 * time.Second

// never is a time no timer needs to fire at.
const never = 24 * time.Hour

// Why something that was asked for is not done.
var (
	// ErrStopped: the supervisor is stopping or has stopped.
	ErrStopped = errors.New("supervisor: stopped")
	// ErrNoSlot: the slot's number is too high.
	ErrNoSlot = errors.New("supervisor: no slot")
	// ErrEmpty: there is no worker to be replaced. The slot gets one as soon as one is ready.
	ErrEmpty = errors.New("supervisor: no worker to replace")
	// ErrReloading: a reload is in progress, which replaces all workers.
	ErrReloading = errors.New("supervisor: a reload is in progress, which replaces all workers; wait for it")

	errOvertaken = errors.New("a reload has begun, which replaces all workers")
	errRemoved   = errors.New("the slot was removed")
)

// Supervisor keeps slots filled with workers. Two goroutines run for each worker
// process, one more while it is probed, and one that closes its link in the end. They end with
// Run, except the one that waits for a process which not even SIGKILL ends.
type Supervisor struct {
	cfg     Config
	log     hclog.Logger
	inbox   chan func()
	stopped chan struct{} // closed by Stop
	done    chan struct{} // closed when the loop has ended
	running sync.WaitGroup
	closing atomic.Int32 // links that are being closed
	once    sync.Once    // for Stop
	view    atomic.Pointer[view]

	// What follows belongs to the goroutine in Run.
	slots      []*slot
	workers    map[*worker]struct{} // all that have not ended, in a slot or not
	published  int                  // number of slots that Slots was told of
	generation int                  // of the latest reload
	reload     *reload              // the one in progress, or nil
	queued     []chan error         // who waits for the reload after it
	lastReload *ReloadStatus        // the one that has ended, or nil
	stopping   bool
	restored   bool     // slots and workers are those of the program before
	scaleTo    int      // then: how many slots there are to be
	answers    []func() // to be given at the end of this turn of the loop
}

// New checks the configuration; Run starts the workers.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Start == nil {
		cfg.Start = StartProcess
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Supervisor{
		cfg:        cfg,
		log:        cfg.Logger,
		inbox:      make(chan func()),
		stopped:    make(chan struct{}),
		done:       make(chan struct{}),
		workers:    make(map[*worker]struct{}),
		generation: 1,
	}
	if cfg.Resume != nil {
		if err := s.restore(cfg.Resume); err != nil {
			return nil, err
		}
	}
	s.view.Store(&view{s.look(), make(chan struct{})})
	return s, nil
}

// Run starts the workers and keeps them running until Stop, and returns when all
// of them have ended. When ctx ends it kills them instead. Call it once.
func (s *Supervisor) Run(ctx context.Context) error {
	if s.restored {
		s.resume()
	} else {
		s.published = s.cfg.Workers
		s.cfg.Slots.Resize(s.published)
		s.grow(s.cfg.Workers)
	}

	stopped, killed := s.stopped, ctx.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !s.stopping || len(s.workers) > 0 {
		select {
		case f := <-s.inbox:
			f()
		case <-timer.C:
		case <-stopped:
			stopped = nil
			s.stop()
		case <-killed:
			killed = nil
			s.stop()
			for w := range s.workers {
				if w.state != Killed {
					s.kill(w)
				}
			}
		}
		wait := s.tick()
		s.show()
		timer.Reset(wait)
	}
	close(s.done)
	s.running.Wait()
	return context.Cause(ctx)
}

// tick does what is due and returns how long nothing else will be.
func (s *Supervisor) tick() time.Duration {
	now := time.Now()
	for w := range s.workers {
		if !w.deadline.IsZero() && !now.Before(w.deadline) {
			s.late(w)
		}
		if !w.beat.IsZero() && !now.Before(w.beat) {
			s.ask(w)
		}
	}
	for _, sl := range s.slots {
		if sl.respawnAt.IsZero() || now.Before(sl.respawnAt) {
			continue
		}
		switch err := s.spawn(sl, sl.generation); {
		case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE):
			sl.respawnAt = now.Add(s.cfg.BackoffMin) // our fault, and no reason to wait long
		case err != nil:
			s.respawn(sl, true)
		}
	}
	// In a second pass, since what was late may have given others a new deadline.
	now, next := time.Now(), never
	for w := range s.workers {
		if !w.deadline.IsZero() {
			next = min(next, w.deadline.Sub(now))
		}
		if !w.beat.IsZero() {
			next = min(next, w.beat.Sub(now))
		}
	}
	for _, sl := range s.slots {
		if !sl.respawnAt.IsZero() {
			next = min(next, sl.respawnAt.Sub(now))
		}
	}
	return max(next, 0)
}

// Reload replaces all workers, slot by slot: a new one takes a slot over when it
// is ready, and only when it has lasted for the probation the old one drains. It returns when
// all slots run the new generation and have, or with the reason why they do not: then the
// workers that were not replaced go on, and those that do not drain yet take their slots back. A reload that is asked for during another one follows it.
// When ctx ends Reload returns, and the reload goes on.
func (s *Supervisor) Reload(ctx context.Context) error {
	_, result, err := s.StartReload()
	if err != nil {
		return err
	}
	return await(ctx, result)
}

// StartReload is Reload without waiting. It returns the generation that the reload
// starts, by which Snapshot shows its progress, and on result comes how it ended.
func (s *Supervisor) StartReload() (generation int, result <-chan error, err error) {
	ended := make(chan error, 1)
	err = s.do(func() error {
		generation = s.generation + 1
		return s.startReload(ended)
	})
	return generation, ended, err
}

// Replace gives one slot a new worker of the same generation: when it is ready it
// takes the slot over, and when it has lasted for the probation the old one drains. If it does not
// come up, or last, the old one stays, and Replace returns why. When ctx ends Replace returns, and the
// replacement goes on. It does not happen, with ErrReloading, during a reload.
func (s *Supervisor) Replace(ctx context.Context, slot int) error {
	result, err := s.StartReplace(slot)
	if err != nil {
		return err
	}
	return await(ctx, result)
}

// StartReplace is Replace without waiting: on result comes how it ended.
func (s *Supervisor) StartReplace(slot int) (result <-chan error, err error) {
	ended := make(chan error, 1)
	return ended, s.do(func() error { return s.startReplace(slot, ended) })
}

func await(ctx context.Context, result <-chan error) error {
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Scale changes the number of slots. Slots are added when their workers are
// ready, and in order; removed slots lose their clients at once and their
// workers drain. Scale does not wait for either.
func (s *Supervisor) Scale(n int) error {
	return s.do(func() error { return s.scale(func(int) int { return n }) })
}

// ScaleBy adds n slots, or removes -n.
func (s *Supervisor) ScaleBy(n int) error {
	return s.do(func() error { return s.scale(func(now int) int { return now + n }) })
}

// Stop lets all workers finish what they have and ends Run, also one that is yet
// to come. It does not wait.
func (s *Supervisor) Stop() {
	s.once.Do(func() { close(s.stopped) })
}

// Ping returns nil when Run's goroutine has taken a turn, or has ended; ctx's error when it
// has not by then.
func (s *Supervisor) Ping(ctx context.Context) error {
	turn := make(chan struct{})
	select {
	case s.inbox <- func() { close(turn) }:
	case <-s.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-turn:
	case <-s.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// post runs f in Run's goroutine, and returns false if Run has ended.
func (s *Supervisor) post(f func()) bool {
	select {
	case s.inbox <- f:
		return true
	case <-s.done:
		return false
	}
}

// do runs f in Run's goroutine, which it waits for, and returns its result.
func (s *Supervisor) do(f func() error) error {
	select {
	case <-s.stopped:
		return ErrStopped
	default:
	}
	result := make(chan error, 1)
	s.post(func() {
		if s.stopping {
			s.answer(result, ErrStopped)
			return
		}
		s.answer(result, f())
	})
	select {
	case err := <-result:
		return err
	case <-s.done:
		return ErrStopped
	}
}

func (s *Supervisor) scale(target func(now int) int) error {
	n := target(len(s.slots))
	if err := s.cfg.checkWorkers(n); err != nil {
		return err
	}
	if n < len(s.slots) {
		s.shrink(n)
	} else {
		s.grow(n)
	}
	s.emit(Event{Kind: Scaled, Seat: Seat{Slot: -1, Slots: n, Generation: s.latest()}})
	return nil
}

// grow adds slots and starts their workers.
func (s *Supervisor) grow(n int) {
	now, generation := time.Now(), s.latest()
	if s.reload != nil {
		generation = s.generation
	}
	for i := len(s.slots); i < n; i++ {
		// The first start, like any other, is done by tick.
		s.slots = append(s.slots, &slot{number: i, generation: generation, respawnAt: now})
	}
}

// latest is the generation of the slots, the latest if they differ: that of a reload which has
// failed in all of them is none.
func (s *Supervisor) latest() (generation int) {
	for _, sl := range s.slots {
		generation = max(generation, sl.generation)
	}
	return cmp.Or(generation, s.generation)
}

// shrink removes the last slots.
func (s *Supervisor) shrink(n int) {
	if s.published > n {
		s.published = n
		s.cfg.Slots.Resize(n)
	}
	removed := s.slots[n:]
	s.slots = s.slots[:n:n]
	for _, sl := range removed {
		s.vacated(sl, s.cfg.DrainTimeout, errRemoved)
		s.dismiss(sl, errRemoved)
	}
	s.stepReload() // which may have waited for a slot that is gone
}

// dismiss ends a worker that is not needed before it was ready, and why.
func (s *Supervisor) dismiss(sl *slot, why error) {
	if w := sl.next; w != nil {
		sl.next = nil
		s.terminate(w)
		s.tell(w, why)
	}
}

// vacated drains whoever is in a slot that is not needed any more, and tells who waits why.
func (s *Supervisor) vacated(sl *slot, timeout time.Duration, why error) {
	if w := sl.current; w != nil {
		sl.current = nil
		s.drain(w, timeout)
		s.tell(w, why)
	}
	if w := sl.standby; w != nil {
		sl.standby = nil
		s.drain(w, timeout)
	}
}

// publish puts a slot's worker into use. New slots come into use in order, so
// that the number of slots never counts one that was never filled.
func (s *Supervisor) publish(sl *slot) {
	if sl.number < s.published {
		s.cfg.Slots.Fill(sl.number, sl.current.link)
		return
	}
	for ; s.published < len(s.slots) && s.slots[s.published].current != nil; s.published++ {
		s.cfg.Slots.Resize(s.published + 1)
		s.cfg.Slots.Fill(s.published, s.slots[s.published].current.link)
	}
}

// stop lets every worker go, whatever it is doing.
func (s *Supervisor) stop() {
	if s.stopping {
		return
	}
	s.stopping = true
	s.reloadStopped()
	for _, sl := range s.slots {
		sl.respawnAt = time.Time{}
		s.dismiss(sl, ErrStopped)
		if sl.current != nil && sl.number < s.published {
			s.cfg.Slots.Empty(sl.number)
		}
		s.vacated(sl, s.cfg.StopTimeout, ErrStopped)
	}
	limit := time.Now().Add(s.cfg.StopTimeout)
	for w := range s.workers {
		if w.state == Draining && w.deadline.After(limit) {
			w.setDeadline(limit)
		}
	}
}

// emit reports a change to the log and to whoever listens.
func (s *Supervisor) emit(e Event) {
	s.logEvent(e)
	if s.cfg.OnEvent != nil {
		s.cfg.OnEvent(e)
	}
}

func (s *Supervisor) logEvent(e Event) {
	where := []any{"slot", e.Slot, "pid", e.PID, "generation", e.Generation}
	switch e.Kind {
	case WorkerStarted:
		s.log.Debug("worker started", where...)
	case WorkerStartFailed:
		s.log.Error("worker cannot be started", "slot", e.Slot, "generation", e.Generation, "err", e.Err)
	case WorkerReady:
		s.log.Info("worker ready", where...)
	case WorkerNotReady:
		s.log.Error("worker is not ready in time; it must accept connections or say ready", withWords(append(where, "timeout", s.cfg.ReadyTimeout.String()), e)...)
	case WorkerLeft:
		level := hclog.Info
		if e.Failed() {
			level = hclog.Warn
		}
		s.log.Log(level, "worker takes no more connections", append(where, "err", e.Err)...)
	case WorkerHung:
		s.log.Warn("worker does not answer the watchdog", append(where, "since", e.Silent.UTC().Format(time.RFC3339Nano), "replaced", e.Replaced)...)
	case WorkerAnswers:
		s.log.Info("worker answers the watchdog again", where...)
	case WorkerDraining:
		s.log.Debug("worker drains", where...)
	case WorkerTerminated:
		s.log.Info("worker sent SIGTERM", where...)
	case WorkerKilled:
		s.log.Warn("worker sent SIGKILL", where...)
	case WorkerExited:
		level := hclog.Info
		if e.Failed() {
			level = hclog.Warn
		}
		fields := append(slices.Clone(where), "exit", e.Exit.String())
		if e.Failed() {
			fields = withWords(fields, e)
		}
		s.log.Log(level, "worker exited", fields...)
		s.logRest(e, where)
	case WorkerStandby:
		s.log.Debug("worker stands by, while its successor is on probation", where...)
	case WorkerRestored:
		s.log.Info("worker is back in its slot, since its successor has failed on probation", where...)
	case WorkerGone:
		s.log.Info("processes that the worker left behind have ended", where...)
	case Reloading:
		s.log.Info("reload started", "generation", e.Generation)
	case Reloaded:
		s.log.Info("reload finished", "generation", e.Generation)
	case ReloadFailed:
		s.log.Error("reload failed", "generation", e.Generation, "err", e.Err)
	case Scaled:
		s.log.Info("number of slots changed", "slots", e.Slots)
	}
}

// withWords adds what a worker wrote last, if that is known.
func withWords(fields []any, e Event) []any {
	if e.LastWords != "" {
		fields = append(fields, "last_words", e.LastWords)
	}
	return fields
}

// logRest says whom a worker has left behind. Of one that drains that is no surprise.
func (s *Supervisor) logRest(e Event, where []any) {
	where = append(where, "pids", e.Rest)
	switch {
	case len(e.Rest) == 0:
	case e.Was == Starting || e.Was == Serving:
		s.log.Warn("worker has left processes behind, which are told to finish, and then killed", append(where, "timeout", s.cfg.KillTimeout.String())...)
	default:
		s.log.Info("worker has left processes behind, which finish", where...)
	}
}
