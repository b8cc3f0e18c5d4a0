package supervisor

import (
	"fmt"
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
	starting   int       // starts that have not come to an end
	lastEnd    *End
}

// worker is one process, from its start until it is reaped.
type worker struct {
	seat         Seat
	slot         *slot
	state        State
	since        time.Time // it is in this state
	link         Link
	process      Process // nil: its start has not come to an end
	output       Output
	notices      Notices
	started      time.Time
	readyAt      time.Time
	deadline     time.Time     // when the state has lasted too long; zero: never
	until        time.Time     // it lingers at least; then Config.LingerUntil is asked again
	exited       chan struct{} // closed when the first process has ended
	ended        bool          // likewise; its link and number are kept until all of its group have
	finished     bool          // it was ready, and has ended by itself with status 0
	left         bool          // it was ready, and has left by itself
	selfDraining bool          // likewise, and finishes without having been told to
	cached       *WorkerStatus // as it was last shown; nil: something has changed since
	waiting      []chan error  // requests to be answered when its start has come to an end

	beat   time.Time                   // when to ask it again whether it is there; zero: not at all
	missed int                         // beats in a row without a sign of it
	silent struct{ link, notices int } // likewise, of each kind of sign that there is; the larger counts
	pings  uint64                      // that it had sent by sd_notify at the last beat
	heard  time.Time                   // when there was one last, if it is asked

	health       health
	memory       int64     // bytes that it and its group had when that was looked at; 0: it was not
	recycle      error     // why another one is to take its place while it serves; nil: none is
	recycleSince time.Time // that is so
	recycles     bool      // it is to take the place of one that is recycled
}

// enter changes the state; a zero timeout means no deadline.
func (w *worker) enter(next State, timeout time.Duration) {
	if !w.state.may(next) {
		panic(fmt.Sprintf("supervisor: worker of slot %d cannot go from %v to %v", w.seat.Slot, w.state, next))
	}
	w.state, w.since = next, time.Now()
	w.beat, w.missed, w.until = time.Time{}, 0, time.Time{}
	w.silent.link, w.silent.notices = 0, 0
	w.setDeadline(time.Time{})
	if timeout > 0 {
		w.setDeadline(w.since.Add(timeout))
	}
}

// isOf tells whether the worker exists and belongs to a generation.
func (w *worker) isOf(generation int) bool {
	return w != nil && w.seat.Generation == generation
}

// pid returns the number of its process, 0 before there is one.
func (w *worker) pid() int {
	if w.process == nil {
		return 0
	}
	return w.process.PID()
}

func (w *worker) event(kind EventKind) Event {
	return Event{Kind: kind, Seat: w.seat, PID: w.pid(), Link: w.link}
}
