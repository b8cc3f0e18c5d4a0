package supervisor

import (
	"errors"
	"strconv"
	"time"
)

// EventKind says what happened.
type EventKind int

// The kinds of events. Err is set where the comment says so.
const (
	WorkerStarted     EventKind = iota // its process runs
	WorkerStartFailed                  // it could not be started: Err
	WorkerReady                        // it is in its slot
	WorkerNotReady                     // it was not ready in time, and is replaced
	WorkerLeft                         // it takes no more work: Err, Was
	WorkerHung                         // it has not answered for the time of the watchdog: Silent, Replaced
	WorkerAnswers                      // it does again
	WorkerDraining                     // it was told to finish
	WorkerTerminated                   // it was sent SIGTERM: it did not finish in time, or is not needed
	WorkerKilled                       // it was sent SIGKILL
	WorkerExited                       // its process has ended: Exit, Was, Rest
	Reloading                          // a reload has begun
	Reloaded                           // all slots run the new generation
	ReloadFailed                       // the new generation does not come up: Err
	Scaled                             // the number of slots to keep has changed: Slots
	WorkerStandby                      // another one has taken its slot over, and is on probation
	WorkerRestored                     // that one has failed, and it is in its slot again
	WorkerGone                         // the processes that it left behind have ended, too
	WorkerLingering                    // it was replaced, and goes on for clients that come back: Until
	WorkerUnhealthy                    // it fails its health checks: Err, Replaced
	WorkerHealthy                      // it passes them again
	WorkerRecycled                     // another one is started to take its place, although it serves: Err
	GaveUp                             // workers of a slot keep dying young, and all are to stop: Err, LastWords
)

// Event is one change. Slot is -1 in events that are not about one worker.
type Event struct {
	Kind EventKind
	Seat
	PID  int
	Link Link // the worker's; not to be used for anything but questions
	Exit Exit
	Was  State // Starting, Serving or Lingering when the end was nobody's wish
	Rest []int // processes of its group that go on
	Err  error

	// LastWords are the last lines that the worker has written, of WorkerExited, WorkerNotReady, WorkerLeft, WorkerHung, WorkerUnhealthy and GaveUp;
	// empty if nobody reads along (Config.NewOutput).
	LastWords string

	Silent   time.Time // when it was heard last
	Replaced bool      // it is killed for that, and gets a successor

	Until time.Time // it lingers, if its clients do not come back
}

// Failed tells, of WorkerExited and WorkerLeft, whether that was nobody's wish. It was the worker's own
// if it had been ready and ended with status 0, or finishes, as servers do that serve so many requests
// and no more.
func (e *Event) Failed() bool {
	if e.Kind == WorkerLeft {
		return !errors.Is(e.Err, ErrFinishing) && e.Was != Lingering // whose slot has another
	}
	return e.Was == Starting || e.Was == Serving && e.Exit != Exit{}
}

// Exit is how a process ended.
type Exit struct {
	Code   int    // exit status; -1 when a signal ended it
	Signal string // name of that signal, e.g. "killed"; else empty
}

func (e Exit) String() string {
	if e.Signal != "" {
		return "signal " + e.Signal
	}
	return "status " + strconv.Itoa(e.Code)
}
