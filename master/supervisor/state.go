package supervisor

import (
	"fmt"
	"slices"
)

// State is where in its life a worker is.
type State int

// The states; doc.go draws them.
const (
	Starting  State = iota // the process runs, but is not ready
	Serving                // ready, and in its slot
	Draining               // replaced or stopped: finishes what it has
	Stopping               // was sent SIGTERM
	Killed                 // was sent SIGKILL
	Exited                 // the process has ended
	Standby                // replaced, and not yet told to finish: it comes back if its successor fails on probation
	Lingering              // replaced for good, and not yet told to finish: clients may come back to it
)

// stateWords are in the API, and in what an upgrade passes on.
var stateWords = []string{"starting", "serving", "draining", "stopping", "killed", "exited", "standby", "lingering"}

func (s State) String() string { return stateWords[s] }

// MarshalText returns the state's word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText fails if the text is the word of no state.
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(stateWords, string(text))
	if i < 0 {
		return fmt.Errorf("supervisor: %q is no state of a worker", text)
	}
	*s = State(i)
	return nil
}

// moves lists the states that may follow each state.
var moves = map[State][]State{
	Starting:  {Serving, Draining, Stopping, Exited},
	Serving:   {Standby, Lingering, Draining, Stopping, Killed, Exited},
	Standby:   {Serving, Lingering, Draining, Stopping, Killed, Exited},
	Lingering: {Draining, Stopping, Killed, Exited},
	Draining:  {Stopping, Killed, Exited},
	Stopping:  {Killed, Exited},
	Killed:    {Exited},
	Exited:    {},
}

// may tells whether a worker can go from one state to another.
func (s State) may(next State) bool {
	for _, m := range moves[s] {
		if m == next {
			return true
		}
	}
	return false
}
