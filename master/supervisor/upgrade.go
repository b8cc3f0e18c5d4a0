package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/handfast/handfast/master/reexec"
)

// quietTimeout is how long Quiesce waits for starts of workers, and for links that are being closed, to come to an end.
const quietTimeout = 5 * time.Second

// part is where a bundle has what Save puts there.
var part = reexec.Part{Name: "supervisor", Version: 1}

// Why the program cannot be replaced now.
var (
	// ErrUpgradeReload: a reload is in progress.
	ErrUpgradeReload = errors.New("supervisor: a reload is in progress; wait for it")
	errBusy          = errors.New("supervisor: workers are being started, or what ended workers have left is not dealt with yet; try again")
	errUpgraded      = errors.New("the master's program is being replaced, the next one starts it again")
)

// saved is what the next program needs to go on with a supervisor's workers.
type saved struct {
	Generation int
	Published  int
	Wanted     int // slots that the configuration asked for; they may have been scaled since
	LastReload *savedReload
	Slots      []savedSlot
	Workers    []savedWorker
}

type savedSlot struct {
	Generation, Failures, Restarts int
	RespawnAt                      time.Time
	LastEnd                        *End
}

type savedReload struct {
	ReloadStatus
	Err string
}

type savedWorker struct {
	Seat
	PID     int
	Current bool // it is in its slot
	Standby bool // it comes back to its slot if the one there fails
	Removed bool // its slot was removed; there may be another of that number
	State   State
	Unasked bool // it finishes by itself
	Ended   bool // its first process has, others of its group have not

	Since, Started, ReadyAt, Deadline time.Time

	Link   json.RawMessage // null: it was not ready, and will not be any more
	Output json.RawMessage // null: it writes where we do
}

// Quiesce calls f, in Run's goroutine, while nothing that belongs to workers moves: no process is
// started or reaped, no link closed, and reexec.Lock is held. It fails without having called f
// during a reload, or when the supervisor is stopping. Final means that the next program is about to run:
// workers that are not ready yet are ended first, for which it will start others.
//
// Quiesce waits until that is so; the supervisor's loop does not, and starts nothing meanwhile.
func (s *Supervisor) Quiesce(final bool, f func() error) error {
	begun := false
	defer func() {
		if begun {
			s.post(func() { s.quiescing = false })
		}
	}()
	timeout, reported := time.After(quietTimeout), time.After(reportTimeout)
	for {
		var wait <-chan struct{}
		err := s.do(func() error {
			if s.reload != nil {
				return ErrUpgradeReload
			}
			s.quiescing, begun = true, true
			if final {
				s.dismissStarting()
			}
			if wait = s.awaitQuiet(reported != nil); wait != nil {
				return errBusy
			}
			reexec.Lock.Lock()
			defer reexec.Lock.Unlock()
			return f()
		})
		if wait == nil {
			return err
		}
		select {
		case <-wait:
		case <-reported:
			reported = nil
		case <-timeout:
			return errBusy
		}
	}
}

// dismissStarting ends workers that are not ready yet, and have not begun. Their slots get others.
func (s *Supervisor) dismissStarting() {
	for _, sl := range s.slots {
		s.fillEarly(sl)
		s.cancelNext(sl, errUpgraded)
		if sl.current == nil && sl.respawnAt.IsZero() {
			sl.respawnAt = time.Now()
		}
	}
}

// awaitQuiet returns what is closed when a start has come to an end or a link is closed, or all was reported if that
// counts; nil: nothing is to be waited for.
func (s *Supervisor) awaitQuiet(reports bool) <-chan struct{} {
	switch {
	case s.starting > 0 || s.closing > 0:
		if s.quiet == nil {
			s.quiet = make(chan struct{})
		}
		return s.quiet
	case reports && !s.events.isIdle():
		return s.events.done()
	case reports && !s.lines.isIdle():
		return s.lines.done()
	}
	return nil
}

// checkQuiet closes quiet if nothing is being started or closed.
func (s *Supervisor) checkQuiet() {
	if s.quiet != nil && s.starting == 0 && s.closing == 0 {
		close(s.quiet)
		s.quiet = nil
	}
}

// Save puts into the bundle what the next program needs. Call it from Quiesce. Workers that are not ready yet are
// left out.
func (s *Supervisor) Save(b *reexec.Bundle) error {
	state := saved{Generation: s.generation, Published: s.published, Wanted: s.cfg.Workers}
	if r := s.lastReload; r != nil {
		state.LastReload = &savedReload{ReloadStatus: *r}
		if r.Err != nil {
			state.LastReload.Err = r.Err.Error()
		}
		state.LastReload.ReloadStatus.Err = nil
	}
	for _, sl := range s.slots {
		state.Slots = append(state.Slots, savedSlot{sl.generation, sl.failures, sl.restarts, sl.respawnAt, sl.lastEnd})
	}
	for w := range s.workers {
		if w.state == Starting { // which none is that another program goes on with
			continue
		}
		entry := savedWorker{
			Seat: w.seat, PID: w.pid(), State: w.state, Ended: w.ended, Unasked: w.selfDraining,
			Current: w.slot.current == w,
			Standby: w.slot.standby == w,
			Removed: w.slot.number >= len(s.slots) || s.slots[w.slot.number] != w.slot,
			Since:   w.since, Started: w.started, ReadyAt: w.readyAt, Deadline: w.deadline,
		}
		if !w.readyAt.IsZero() {
			text, err := w.link.Save(b)
			if err != nil {
				return err
			}
			if entry.Link, err = json.Marshal(text); err != nil {
				return fmt.Errorf("supervisor: %w", err)
			}
		}
		output, err := w.output.Save(b)
		if err == nil {
			entry.Output, err = json.Marshal(output)
		}
		if err != nil {
			return fmt.Errorf("supervisor: %w", err)
		}
		state.Workers = append(state.Workers, entry)
	}
	if err := s.saveNotices(b); err != nil {
		return err
	}
	return b.Put(part, state)
}

// restore makes slots and workers of what Save has put into a bundle. Nothing moves before Run.
func (s *Supervisor) restore(b *reexec.Bundle) error {
	var state saved
	if err := b.Get(part, &state); err != nil {
		return err
	}
	if err := state.check(); err != nil {
		return err
	}
	if err := s.cfg.checkWorkers(len(state.Slots)); err != nil {
		return err
	}
	s.restored = true
	s.generation, s.published = state.Generation, state.Published
	s.scaleTo = len(state.Slots)
	if state.Wanted != s.cfg.Workers {
		s.scaleTo = s.cfg.Workers
	}
	if r := state.LastReload; r != nil {
		s.lastReload = &r.ReloadStatus
		if r.Err != "" {
			s.lastReload.Err = errors.New(r.Err)
		}
	}
	for i, sl := range state.Slots {
		s.slots = append(s.slots, &slot{
			number: i, generation: sl.Generation, failures: sl.Failures, restarts: sl.Restarts,
			respawnAt: sl.RespawnAt, lastEnd: sl.LastEnd,
		})
	}
	for _, entry := range state.Workers {
		if err := s.restoreWorker(entry); err != nil {
			return err
		}
	}
	return s.restoreNotices(b)
}

// errState: what the program before has left is nothing that it could have been.
var errState = errors.New("that cannot be")

// check returns an error for what no program can have left: of a process that is not a worker's, signals would reach
// others.
func (s *saved) check() error {
	if s.Published < 1 || s.Published > len(s.Slots) {
		return fmt.Errorf("supervisor: %d of %d slots are in use: %w", s.Published, len(s.Slots), errState)
	}
	if s.Generation < 1 || s.Wanted < 1 {
		return fmt.Errorf("supervisor: generation %d, %d slots wanted: %w", s.Generation, s.Wanted, errState)
	}
	for i, sl := range s.Slots {
		if sl.Generation < 0 || sl.Failures < 0 || sl.Restarts < 0 {
			return fmt.Errorf("supervisor: slot %d has generation %d, %d failures, %d restarts: %w", i, sl.Generation, sl.Failures, sl.Restarts, errState)
		}
	}
	pids, current, standby := make(map[int]bool), make(map[int]bool), make(map[int]bool)
	for _, w := range s.Workers {
		if err := w.check(len(s.Slots)); err != nil {
			return err
		}
		if pids[w.PID] || w.Current && current[w.Slot] || w.Standby && standby[w.Slot] {
			return fmt.Errorf("supervisor: worker %d, or its place in slot %d, is there twice: %w", w.PID, w.Slot, errState)
		}
		pids[w.PID] = true
		current[w.Slot] = current[w.Slot] || w.Current
		standby[w.Slot] = standby[w.Slot] || w.Standby
	}
	return nil
}

// maxPID is the kernel's (PID_MAX_LIMIT).
const maxPID = 1 << 22

func (w *savedWorker) check(slots int) error {
	const initPID = 1 // which is nobody's child, and with a minus means all
	hasPlace, hasLink := w.Current || w.Standby, len(w.Link) > 0 && string(w.Link) != "null"
	switch {
	case w.PID <= initPID || w.PID > maxPID:
		return fmt.Errorf("supervisor: a worker's process is %d: %w", w.PID, errState)
	case w.State == Starting || w.State == Exited:
		return fmt.Errorf("supervisor: worker %d is %v: %w", w.PID, w.State, errState)
	case w.Slot < 0 || w.Slots < 1 || w.Generation < 1:
		return fmt.Errorf("supervisor: worker %d is in slot %d of %d, of generation %d: %w", w.PID, w.Slot, w.Slots, w.Generation, errState)
	case w.State == Lingering && (hasPlace || !hasLink || w.Deadline.IsZero()):
		return fmt.Errorf("supervisor: worker %d lingers, and cannot: %w", w.PID, errState)
	case hasPlace && (w.Removed || w.Slot >= slots || !hasLink || w.Current && w.Standby):
		return fmt.Errorf("supervisor: worker %d has a place in slot %d, and cannot have it: %w", w.PID, w.Slot, errState)
	}
	return nil
}

func (s *Supervisor) restoreWorker(entry savedWorker) (err error) {
	w := &worker{
		seat: entry.Seat, state: entry.State, since: entry.Since, started: entry.Started,
		readyAt: entry.ReadyAt, deadline: entry.Deadline, ended: entry.Ended, selfDraining: entry.Unasked, exited: make(chan struct{}), link: noLink{}, notices: noNotices{},
	}
	w.process = s.cfg.Adopt(entry.PID)
	if w.output, err = s.restoreOutput(entry.Seat, entry.PID, entry.Output); err != nil {
		return err
	}
	if len(entry.Link) > 0 && string(entry.Link) != "null" {
		if w.link, err = s.cfg.RestoreLink(entry.Seat, entry.PID, entry.Link); err != nil {
			return err
		}
		w.link.Started(w.process)
	}
	switch {
	case entry.Removed || entry.Slot >= len(s.slots):
		w.slot = &slot{number: entry.Slot}
	default:
		w.slot = s.slots[entry.Slot]
	}
	if entry.Current {
		w.slot.current = w
	}
	if entry.Standby {
		w.slot.standby = w
	}
	s.workers[w] = struct{}{}
	return nil
}

// resume goes on with what was restored.
func (s *Supervisor) resume() {
	s.cfg.Slots.Resize(s.published)
	for w := range s.workers {
		w.link.Resume()
		w.output.Resume()
		w.notices.Resume()
		if w.state == Serving || w.state == Lingering {
			s.startPinging(w)
			if w.state == Serving {
				s.startHealth(w)
			}
		}
		if w.state == Draining && !w.selfDraining {
			w.link.Drain() // it may be about to tell the worker
		}
		s.observe(w)
	}
	for _, sl := range s.slots[:s.published] {
		if sl.current != nil {
			s.fill(sl)
		}
	}
	if s.scaleTo != len(s.slots) {
		s.scale(func(int) int { return s.scaleTo })
	}
}
