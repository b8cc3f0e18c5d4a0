package supervisor

import (
	"slices"
	"strconv"
	"time"
)

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
	command := w.link.Launch(seat.expand(s.cfg.Command))
	if _, ok := s.cfg.Setting.path(); ok { // which package os/exec knows nothing of
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
	w.link.Started(w.process)
	s.workers[w] = struct{}{}
	sl.next = w
	w.started = time.Now()
	w.since, w.deadline = w.started, w.started.Add(s.cfg.ReadyTimeout)
	s.emit(w.event(WorkerStarted))
	s.follow(w)
	return nil
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
