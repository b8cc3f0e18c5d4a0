package admin

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// Progress is one step of a reload, a drain or a stop.
type Progress struct {
	Step       Step   `json:"step"`
	Generation int    `json:"generation,omitempty"` // of the reload
	Slot       *int   `json:"slot,omitempty"`       // of StepStarting and StepReplaced
	PID        int    `json:"pid,omitempty"`        // of the new worker
	Done       int    `json:"done"`                 // slots that were taken over
	Slots      int    `json:"slots"`                // that are to be
	Workers    int    `json:"workers,omitempty"`    // of StepStopping: processes that are left
	Error      string `json:"error,omitempty"`      // of StepFailed
}

// Step is what has happened.
type Step string

// The steps. A reload or a drain ends with StepFinished or StepFailed, a stop with the master.
const (
	StepWaiting  Step = "waiting"  // for the reload before
	StepStarting Step = "starting" // a new worker, for a slot
	StepReplaced Step = "replaced" // it has taken its slot over
	StepProving  Step = "proving"  // all have; they are on probation
	StepStopping Step = "stopping"
	StepFinished Step = "finished"
	StepFailed   Step = "failed"
)

// steps writes an answer step by step.
type steps struct {
	http.ResponseWriter
	control *http.ResponseController
	last    Progress
}

// begin answers that what was asked for is being done.
func begin(w http.ResponseWriter) *steps {
	s := &steps{ResponseWriter: w, control: http.NewResponseController(w)}
	s.control.SetReadDeadline(time.Time{}) // whose end would look like the client's
	w.Header().Set("Content-Type", "application/x-ndjson")
	s.flush()
	return s
}

// say writes a step. A client that does not read it is left behind.
func (s *steps) say(p Progress) {
	if p == s.last {
		return
	}
	s.last = p
	s.control.SetWriteDeadline(time.Now().Add(answerTimeout))
	json.NewEncoder(s).Encode(p)
	s.flush()
}

func (s *steps) flush() { s.control.Flush() }

// end writes the last step.
func (s *steps) end(p Progress, err error) {
	p.Step = StepFinished
	if err != nil {
		p.Step, p.Error = StepFailed, err.Error()
	}
	s.say(p)
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	if !read(w, r, &struct{}{}) {
		return
	}
	generation, result, err := s.master.StartReload()
	if err != nil {
		fail(w, statusOf(err), err)
		return
	}
	s.log.Info("reload asked for by the admin socket", "generation", generation)
	follow := &follower{steps: begin(w), generation: generation}
	for {
		snapshot, changed := s.master.Snapshot()
		follow.see(snapshot)
		select {
		case err := <-result:
			snapshot, _ := s.master.Snapshot() // which shows the end
			follow.see(snapshot)
			follow.end(Progress{Generation: generation, Done: follow.done, Slots: len(snapshot.Slots)}, err)
			return
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// follower tells of a reload what is new in each snapshot.
type follower struct {
	*steps
	generation int
	waits      bool // was said
	starting   int  // the worker of which it was
	done       int  // slots of which it was
	proving    bool // was said
}

func (f *follower) see(snapshot *supervisor.Snapshot) {
	r := snapshot.Reload
	if r == nil || r.Generation < f.generation {
		if !f.waits {
			f.waits = true
			f.say(Progress{Step: StepWaiting, Generation: f.generation, Slots: len(snapshot.Slots)})
		}
		return
	}
	if r.Generation > f.generation {
		return // the one after it: the result is under way
	}
	for ; f.done < min(r.Done, len(snapshot.Slots)); f.done++ {
		slot, p := f.done, Progress{Step: StepReplaced, Generation: f.generation, Done: f.done + 1, Slots: r.Slots}
		if w := snapshot.Slots[slot].Worker; w != nil {
			p.PID = w.PID
		}
		p.Slot = &slot
		f.say(p)
	}
	if !r.Ended.IsZero() {
		return
	}
	if r.Done >= len(snapshot.Slots) {
		if !r.Probation.IsZero() && !f.proving {
			f.proving = true
			f.say(Progress{Step: StepProving, Generation: f.generation, Done: f.done, Slots: r.Slots})
		}
		return
	}
	if next := snapshot.Slots[r.Done].Next; next != nil && next.Generation == f.generation && next.PID != 0 && next.PID != f.starting {
		slot := r.Done
		f.starting = next.PID
		f.say(Progress{Step: StepStarting, Generation: f.generation, Slot: &slot, PID: next.PID, Done: f.done, Slots: r.Slots})
	}
}

// Drain is what a drain asks for: a fresh worker in a slot, or now, that workers drain which linger.
type Drain struct {
	Now        bool `json:"now,omitempty"`
	Slot       *int `json:"slot,omitempty"`       // with Now only those that were in it; nil: in any
	Generation *int `json:"generation,omitempty"` // with Now only those of it; nil: of any
}

// Drained is the answer to a drain now.
type Drained struct {
	Workers int `json:"workers"` // that lingered, and drain
}

func (s *Server) drainNow(w http.ResponseWriter, d Drain) {
	n, err := s.master.DrainLingering(func(seat supervisor.Seat) bool {
		return (d.Slot == nil || seat.Slot == *d.Slot) && (d.Generation == nil || seat.Generation == *d.Generation)
	})
	if err != nil {
		fail(w, statusOf(err), err)
		return
	}
	s.log.Info("drain of workers that linger asked for by the admin socket", "workers", n)
	answer(w, http.StatusOK, Drained{n})
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	var body Drain
	if !read(w, r, &body) {
		return
	}
	if body.Now {
		s.drainNow(w, body)
		return
	}
	if body.Slot == nil || body.Generation != nil {
		fail(w, http.StatusBadRequest, errors.New(`want {"slot": N}, or {"now": true}`))
		return
	}
	slot := *body.Slot
	result, err := s.master.StartReplace(slot)
	if err != nil {
		fail(w, statusOf(err), err)
		return
	}
	s.log.Info("drain asked for by the admin socket", "slot", slot)
	follow, starting, proving := begin(w), 0, false
	for {
		snapshot, changed := s.master.Snapshot()
		if _, next := workers(snapshot, slot); next != nil && next.PID != starting {
			starting = next.PID
			follow.say(Progress{Step: StepStarting, Slot: &slot, PID: starting, Slots: 1})
		}
		if slot < len(snapshot.Slots) && snapshot.Slots[slot].Standby != nil && !proving {
			proving = true
			follow.say(Progress{Step: StepProving, Slot: &slot, PID: starting, Slots: 1})
		}
		select {
		case err := <-result:
			snapshot, _ := s.master.Snapshot() // which shows the end
			p := Progress{Slot: &slot, Slots: 1}
			if fresh, _ := workers(snapshot, slot); fresh != nil && err == nil {
				p.PID, p.Done = fresh.PID, 1
			}
			follow.end(p, err)
			return
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// workers returns those of a slot, which may be gone meanwhile.
func workers(snapshot *supervisor.Snapshot, slot int) (current, next *supervisor.WorkerStatus) {
	if slot >= len(snapshot.Slots) {
		return nil, nil
	}
	return snapshot.Slots[slot].Worker, snapshot.Slots[slot].Next
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) {
	if !read(w, r, &struct{}{}) {
		return
	}
	s.log.Info("stop asked for by the admin socket")
	s.master.Stop()
	follow := begin(w)
	for {
		snapshot, changed := s.master.Snapshot()
		left := len(snapshot.Draining)
		for _, sl := range snapshot.Slots {
			if sl.Worker != nil {
				left++
			}
			if sl.Next != nil {
				left++
			}
			if sl.Standby != nil {
				left++
			}
		}
		follow.say(Progress{Step: StepStopping, Workers: left})
		select {
		case <-changed:
		case <-r.Context().Done(): // the server's, which ends with the master
			return
		}
	}
}
