package supervisor

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/pgroup"
)

// reapTimeout is how long to wait for a process that was sent SIGKILL.
const reapTimeout = 10 * time.Second

const (
	// endTimeout is how long Run waits in the end for links to be closed and other goroutines to end.
	endTimeout = 10 * time.Second
	// reportTimeout is how long a log that hangs, or a callback, can hold up the end of Run, or an upgrade.
	reportTimeout = time.Second
)

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
	// ErrGaveUp: the workers of a slot keep dying young, more often than they may.
	ErrGaveUp = errors.New("supervisor: workers keep dying young")
	// ErrReloading: a reload is in progress, which replaces all workers.
	ErrReloading = errors.New("supervisor: a reload is in progress, which replaces all workers; wait for it")

	errOvertaken = errors.New("a reload has begun, which replaces all workers")
	errRemoved   = errors.New("the slot was removed")
)

// Supervisor keeps slots filled with workers. Goroutines: one for the start of a worker; then two for each
// process, and one more while it is probed; one that closes its link in the end; and one each for the log and for
// Config.OnEvent, while there is something to tell. They end with Run, except for those that hang: a process that not
// even SIGKILL ends, a start or a link whose file system does not answer, a log that nobody reads.
type Supervisor struct {
	cfg     Config
	log     hclog.Logger
	inbox   chan func()
	refuses chan struct{} // closed by EndRequests, and by Stop
	stopped chan struct{} // closed by Stop
	done    chan struct{} // closed when the loop has ended
	running sync.WaitGroup
	refuse  sync.Once // for EndRequests
	once    sync.Once // for Stop
	view    atomic.Pointer[view]
	lines   reporter // to the log
	events  reporter // to Config.OnEvent

	// The fields below belong to the goroutine in Run.
	slots      []*slot
	workers    map[*worker]struct{} // all that have not ended, in a slot or not
	published  int                  // number of slots that Slots was told of
	generation int                  // of the latest reload
	reload     *reload              // the one in progress, or nil
	queued     []chan error         // requests for the reload after it
	lastReload *ReloadStatus        // the one that has ended, or nil
	recycling  recycling
	gaveUp     error // what Run is to return
	stopping   bool

	starting    int             // starts of workers that have not come to an end
	latestStart <-chan struct{} // closed when the latest of them has
	closing     int             // links that are being closed
	quiescing   bool            // nothing is to be started
	quiet       chan struct{}   // closed when nothing is being started or closed; nil: nobody waits for that

	restored bool     // slots and workers are those of the program before
	scaleTo  int      // then: how many slots there are to be
	answers  []func() // to be given at the end of this turn of the loop
}

// New checks the configuration; Run starts the workers.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Start == nil {
		cfg.Start = StartProcess
	}
	if cfg.Memory == nil {
		cfg.Memory = pgroup.Memory
	}
	if cfg.Adopt == nil {
		cfg.Adopt = AdoptProcess
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Supervisor{
		cfg:         cfg,
		log:         cfg.Logger,
		inbox:       make(chan func()),
		refuses:     make(chan struct{}),
		stopped:     make(chan struct{}),
		done:        make(chan struct{}),
		workers:     make(map[*worker]struct{}),
		generation:  1,
		latestStart: isClosed,
	}
	s.lines.leftOut = func(n int) { s.log.Warn("log not complete: it does not keep up with the supervisor", "left_out", n) }
	s.events.leftOut = func(n int) {
		s.logLater(hclog.Error, "events were left out: their receiver does not keep up", "left_out", n)
	}
	if cfg.Resume != nil {
		if err := s.restore(cfg.Resume); err != nil {
			return nil, err
		}
	}
	s.view.Store(&view{s.takeSnapshot(), make(chan struct{})})
	return s, nil
}

// Run starts the workers and keeps them running until Stop, and returns when all
// of them have ended: with nil, or with ErrGaveUp. When ctx ends it kills them instead. Call it once.
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
		s.publishSnapshot()
		timer.Reset(wait)
	}
	close(s.done)
	s.end()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return s.gaveUp
}

// end waits until links are closed, and until all that has happened is in the log and was told, but not for ever.
func (s *Supervisor) end() {
	closed := make(chan struct{})
	go func() { s.running.Wait(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(endTimeout):
		s.logLater(hclog.Error, "workers have ended, and what they had is not closed", "timeout", endTimeout.String())
	}
	timeout := time.After(reportTimeout)
	for _, r := range []*reporter{&s.events, &s.lines} {
		select {
		case <-r.done():
		case <-timeout:
			return
		}
	}
}

// tick does what is due and returns how long nothing else will be.
func (s *Supervisor) tick() time.Duration {
	now := time.Now()
	for w := range s.workers {
		if !w.deadline.IsZero() && !now.Before(w.deadline) {
			s.overdue(w)
		}
		if !w.beat.IsZero() && !now.Before(w.beat) {
			s.ping(w)
		}
		if w.state == Lingering && !now.Before(w.until) {
			s.stillLingers(w)
		}
		if w.state == Serving && !w.health.next.IsZero() && !now.Before(w.health.next) {
			s.askHealth(w)
		}
	}
	for _, sl := range s.slots {
		if s.waitsForStart(sl) && !now.Before(sl.respawnAt) {
			s.spawn(sl, sl.generation)
		}
	}
	s.endOldest()
	s.stepRecycle(now)
	// In a second pass, since what was late may have given others a new deadline.
	now, next := time.Now(), never
	for w := range s.workers {
		if !w.deadline.IsZero() {
			next = min(next, w.deadline.Sub(now))
		}
		if !w.beat.IsZero() {
			next = min(next, w.beat.Sub(now))
		}
		if w.state == Lingering {
			next = min(next, w.until.Sub(now))
		}
		if w.state == Serving && !w.health.next.IsZero() {
			next = min(next, w.health.next.Sub(now))
		}
	}
	next = min(next, s.recycleWait(now))
	for _, sl := range s.slots {
		if s.waitsForStart(sl) {
			next = min(next, sl.respawnAt.Sub(now))
		}
	}
	return max(next, 0)
}

// waitsForStart tells whether time alone keeps a slot's next worker from being started: it is not while
// an earlier start has not come to an end, nor while an upgrade is about to be made.
func (s *Supervisor) waitsForStart(sl *slot) bool {
	return !sl.respawnAt.IsZero() && sl.starting == 0 && !s.quiescing
}

// Stop lets all workers finish what they have and ends Run, also one that is yet
// to come. It does not wait.
func (s *Supervisor) Stop() {
	s.EndRequests()
	s.once.Do(func() { close(s.stopped) })
}

// EndRequests has what is asked for from now on answered by ErrStopped, as after Stop. Workers, and a reload in progress, go on.
func (s *Supervisor) EndRequests() {
	s.refuse.Do(func() { close(s.refuses) })
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
	case <-s.refuses:
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

// stop lets every worker go, whatever it is doing.
func (s *Supervisor) stop() {
	if s.stopping {
		return
	}
	s.stopping = true
	s.reloadStopped()
	drain := func(w *worker) { s.drain(w, s.cfg.StopTimeout) }
	for _, sl := range s.slots {
		sl.respawnAt = time.Time{}
		s.fillEarly(sl)
		s.cancelNext(sl, ErrStopped)
		if sl.current != nil && sl.number < s.published {
			s.cfg.Slots.Empty(sl.number)
		}
		s.clearSlot(sl, drain, ErrStopped)
	}
	limit := time.Now().Add(s.cfg.StopTimeout)
	for w := range s.workers {
		if w.state == Lingering {
			drain(w)
		}
		if w.state == Draining && w.deadline.After(limit) {
			w.setDeadline(limit)
		}
	}
}
