package supervisor

import (
	"cmp"
	"slices"
	"time"
)

// Snapshot is what the supervisor is doing at one moment. It is never changed, and
// all callers share it.
type Snapshot struct {
	Slots      []SlotStatus    // by number
	InUse      int             // of them have clients; those behind wait for their first worker
	Draining   []*WorkerStatus // workers that are in no slot any more, also those that linger, in the order of their generations
	Generation int             // that the slots run, or the latest of them; 1 before the first reload
	Reload     *ReloadStatus   // the one in progress, else the last one; nil: there was none
	Queued     bool            // another reload follows the one in progress
	Stopping   bool
}

// SlotStatus is one slot and its workers.
type SlotStatus struct {
	Worker    *WorkerStatus // fills the slot; nil: nobody does
	Next      *WorkerStatus // starts, to take the slot over; or nil
	Standby   *WorkerStatus // was in the slot before Worker, which is on probation; or nil
	NextStart time.Time     // when the next one starts, unless somebody fills the slot; zero: none is due
	Restarts  int           // how often a successor was needed: a worker had ended, left, or could not be started
	LastEnd   *End          // the last one of those that nobody had asked for; nil: there was none
}

// WorkerStatus is one worker.
type WorkerStatus struct {
	Seat
	PID      int // 0: its process is being started
	State    State
	Started  time.Time // when its process was
	Since    time.Time // it is in this state
	Deadline time.Time // when the state has lasted too long; zero: never
	Until    time.Time // it lingers, if its clients do not come back; zero: it does not linger
	Silent   time.Time // since when it has not answered the watchdog; zero: it does, or is not asked
	Sick     time.Time // since when it is unhealthy; zero: it is not, or is not asked
	Memory   int64     // bytes that its process group had some seconds ago; 0: not known
	Link     Link      // not to be used for anything but questions
	Notices  Notices   // likewise
}

// End is that of a worker, or of its time in a slot, when nobody had asked for it.
type End struct {
	PID        int // 0: it could not be started
	Generation int
	At         time.Time
	Why        string
	LastWords  string // lines that the worker had written last; empty if nobody reads along
}

// ReloadStatus is one rolling replacement of all workers.
type ReloadStatus struct {
	Generation int
	Done       int       // slots 0 to Done-1 have a worker of this generation, or had when it failed
	Slots      int       // to have one
	Probation  time.Time // when those that have taken their slots over will have lasted long enough; zero: they have, or there is none yet
	Began      time.Time // and
	Ended      time.Time // zero: in progress
	Err        error     // why it failed; nil: it did not
}

// view is a snapshot, and how to learn that there is another.
type view struct {
	snapshot Snapshot
	changed  chan struct{} // closed when it is out of date
}

// Snapshot returns what the supervisor is doing, without asking it, and a channel
// that is closed when there may be something new. What a method has done by the time
// it returns is in the snapshot. The last one is of the end of Run.
func (s *Supervisor) Snapshot() (*Snapshot, <-chan struct{}) {
	v := s.view.Load()
	return &v.snapshot, v.changed
}

// publishSnapshot publishes a snapshot, and then answers requests.
func (s *Supervisor) publishSnapshot() {
	old := s.view.Swap(&view{s.takeSnapshot(), make(chan struct{})})
	close(old.changed)
	for _, answer := range s.answers {
		answer()
	}
	s.answers = nil
}

// answer answers a request, as soon as the snapshot shows the result.
func (s *Supervisor) answer(waiting chan<- error, err error) {
	s.answers = append(s.answers, func() { waiting <- err })
}

func (s *Supervisor) takeSnapshot() Snapshot {
	snapshot := Snapshot{
		Slots:      make([]SlotStatus, len(s.slots)),
		InUse:      s.published,
		Generation: s.latest(),
		Reload:     s.lastReload,
		Queued:     len(s.queued) > 0,
		Stopping:   s.stopping,
	}
	if r := s.reload; r != nil {
		snapshot.Reload = s.statusOf(r)
	}
	for i, sl := range s.slots {
		snapshot.Slots[i] = SlotStatus{sl.current.status(), sl.next.status(), sl.standby.status(), sl.respawnAt, sl.restarts, sl.lastEnd}
	}
	for w := range s.workers {
		if w != w.slot.current && w != w.slot.next && w != w.slot.standby {
			snapshot.Draining = append(snapshot.Draining, w.status())
		}
	}
	slices.SortFunc(snapshot.Draining, func(a, b *WorkerStatus) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Slot, b.Slot), a.Started.Compare(b.Started))
	})
	return snapshot
}

// status is nil for no worker. It is made anew after each change only.
func (w *worker) status() *WorkerStatus {
	if w != nil && w.cached == nil {
		w.cached = &WorkerStatus{w.seat, w.pid(), w.state, w.started, w.since, w.deadline, w.until, w.silentSince(), w.health.since, w.memory, w.link, w.notices}
	}
	if w == nil {
		return nil
	}
	return w.cached
}

// setDeadline says when the state of a worker has lasted too long; zero: never.
func (w *worker) setDeadline(t time.Time) { w.deadline, w.cached = t, nil }

func (s *Supervisor) statusOf(r *reload) *ReloadStatus {
	status := &ReloadStatus{Generation: r.generation, Done: min(r.slot, len(s.slots)), Slots: len(s.slots), Began: r.began}
	for _, sl := range s.slots {
		if sl.standby != nil && sl.standby.deadline.After(status.Probation) {
			status.Probation = sl.standby.deadline
		}
	}
	return status
}
