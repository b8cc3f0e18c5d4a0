package supervisor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/handfast/handfast/fdpass"
)

// startDelay is how long the start of a worker waits for the one before it to end. As a rule one is started after
// the other; one that takes long does not hold up those behind it for longer.
const startDelay = 250 * time.Millisecond

// maxStarts is how many starts of a slot may be in progress at a time: one that nobody waits for any more, and its successor.
const maxStarts = 2

// errStartHangs: the start of a worker has taken longer than the worker may take to be ready.
var errStartHangs = errors.New("its start has not come to an end; its program or a file that it needs may be on a file system that does not answer")

// startResult is what has become of the start of a worker: what it has, or why there is no process.
type startResult struct {
	link    Link
	output  Output
	process Process
	notices Notices
	err     error
}

// spawn begins to start a worker that will take the slot over when it is ready. The start itself
// has a goroutine, which nobody waits for: it reads files and loads a program, and that takes as long as
// their file system takes. What has become of it is started's.
func (s *Supervisor) spawn(sl *slot, generation int) {
	sl.respawnAt = time.Time{}
	w := &worker{
		seat:    Seat{Slot: sl.number, Slots: len(s.slots), Generation: generation},
		slot:    sl,
		link:    noLink{},
		output:  inherited{},
		notices: noNotices{},
		started: time.Now(),
		exited:  make(chan struct{}),
	}
	w.since = w.started
	w.setDeadline(w.started.Add(s.cfg.ReadyTimeout))
	s.workers[w] = struct{}{}
	sl.next = w
	s.starting++
	sl.starting++
	before, ended := s.latestStart, make(chan struct{})
	s.latestStart = ended
	go func() {
		defer close(ended)
		select {
		case <-before:
		case <-time.After(startDelay):
		}
		result := s.start(w.seat)
		if !s.post(func() { s.started(w, result) }) {
			result.undo()
		}
	}()
}

// start starts a worker. It may be called for several at a time.
func (s *Supervisor) start(seat Seat) (r startResult) {
	var variables []string
	if variables, r.err = s.cfg.Setting.environ(seat, s.cfg.Rights); r.err != nil {
		return r
	}
	if r.link, r.err = s.cfg.NewLink(seat); r.err != nil {
		r.link = nil
		return r
	}
	if r.output, r.err = s.openOutput(seat); r.err != nil {
		r.output = nil
		return r
	}
	if r.notices, r.err = s.openNotices(); r.err != nil {
		r.notices = nil
		return r
	}
	stdout, stderr := r.output.Files()
	env := slices.Concat(s.cfg.Rights.Env, variables, seat.env(), r.notices.Env())
	env = slices.Concat(env, r.link.Env(func(name string) string { return valueOf(env, name) }), s.cfg.Env)
	r.process, r.err = s.cfg.Start(Spec{
		Command:   s.command(seat, r.link),
		Directory: s.cfg.Setting.Directory,
		Env:       env,
		Files:     r.link.Files(),
		Rights:    s.cfg.Rights,
		Stdout:    stdout,
		Stderr:    stderr,
	})
	if r.err != nil {
		return r
	}
	r.output.Started(r.process.PID())
	r.notices.Started(r.process.PID())
	r.link.Started(r.process)
	return r
}

// valueOf returns the value of a variable that a worker is given, or else has from the master.
func valueOf(env []string, name string) string {
	if value, ok := lastOf(env, name); ok {
		return value
	}
	return os.Getenv(name)
}

// lastOf returns the value of a variable in a list, of which a later entry comes before an earlier one.
func lastOf(env []string, name string) (value string, ok bool) {
	for _, variable := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(variable, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// command returns what to run for a worker.
func (s *Supervisor) command(seat Seat, link Link) []string {
	command := link.Launch(seat.expand(s.cfg.Command))
	if _, ok := s.cfg.Setting.path(); ok { // which package os/exec knows nothing of
		if path, err := s.cfg.Setting.Find(command[0]); err == nil {
			command[0] = path
		}
	}
	return command
}

// undo ends what was started. It may wait.
func (r startResult) undo() {
	if r.err == nil {
		r.process.Signal(syscall.SIGKILL)
		r.process.Wait()
	}
	if r.link != nil {
		r.link.Close()
	}
	if r.output != nil {
		r.output.Close()
	}
	if r.notices != nil {
		r.notices.Close()
	}
}

// started goes on with a worker whose start has come to an end. Meanwhile it may have been told to end,
// or given up.
func (s *Supervisor) started(w *worker, result startResult) {
	s.starting--
	w.slot.starting--
	defer s.checkQuiet()
	if result.err != nil {
		s.startFailed(w, result)
		return
	}
	w.link, w.output, w.notices, w.process, w.started, w.cached = result.link, result.output, result.notices, result.process, time.Now(), nil
	s.workers[w] = struct{}{} // again, if it was given up
	s.emit(w.event(WorkerStarted))
	s.observe(w)
	w.since = w.started
	switch w.state {
	case Starting:
		w.setDeadline(w.started.Add(s.cfg.ReadyTimeout))
	case Stopping:
		w.setDeadline(w.started.Add(s.killTimeout()))
		s.sendTerm(w)
	default:
		w.setDeadline(w.started.Add(reapTimeout))
		s.sendKill(w)
	}
}

// startFailed sees to a worker that has no process.
func (s *Supervisor) startFailed(w *worker, result startResult) {
	delete(s.workers, w)
	e := Event{Kind: WorkerStartFailed, Seat: w.seat, Link: result.link, Err: result.err}
	if w.state != Starting { // nobody waits for it any more
		e.Kind, e.Err = WorkerGone, nil
	}
	s.emit(e)
	if result.link != nil {
		s.closeLink(result.link)
	}
	if result.output != nil {
		result.output.Close()
	}
	if result.notices != nil {
		result.notices.Close()
	}
	if w.state == Starting {
		s.vacate(w, result.err)
	}
}

// startLate gives up a start that takes longer than the worker may take to be ready. When it comes to
// an end after all, what it has started is ended.
func (s *Supervisor) startLate(w *worker) {
	why := fmt.Errorf("%w (waited %v)", errStartHangs, s.cfg.ReadyTimeout)
	s.emit(Event{Kind: WorkerStartFailed, Seat: w.seat, Err: why})
	s.terminate(w)
	s.vacate(w, why)
}

// checkStart tells whether another start of a worker for a slot may begin.
func (sl *slot) checkStart() error {
	if sl.starting >= maxStarts {
		return fmt.Errorf("%d starts of this slot are in progress already: %w", sl.starting, errStartHangs)
	}
	return nil
}

// isOurFault tells whether a start has failed for want of descriptors. That is over soon, and no worker's.
func isOurFault(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

func (seat Seat) env() []string {
	n := strconv.Itoa(seat.Slot)
	return []string{
		fdpass.EnvSlot + "=" + n,
		fdpass.EnvSlots + "=" + strconv.Itoa(seat.Slots),
		fdpass.EnvGeneration + "=" + strconv.Itoa(seat.Generation),
		fdpass.EnvWorkerID + "=" + n,
	}
}
