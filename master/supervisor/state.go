package supervisor

// State is where in its life a worker is.
type State int

// The states; doc.go draws them. Their numbers are in what an upgrade passes on.
const (
	Starting State = iota // the process runs, but is not ready
	Serving               // ready, and in its slot
	Draining              // replaced or stopped: finishes what it has
	Stopping              // was sent SIGTERM
	Killed                // was sent SIGKILL
	Exited                // the process has ended
	Standby               // replaced, and not yet told to finish: it comes back if its successor fails on probation
)

func (s State) String() string {
	return [...]string{"starting", "serving", "draining", "stopping", "killed", "exited", "standby"}[s]
}

// moves lists the states that may follow each state.
var moves = map[State][]State{
	Starting: {Serving, Stopping, Exited},
	Serving:  {Standby, Draining, Stopping, Killed, Exited},
	Standby:  {Serving, Draining, Stopping, Killed, Exited},
	Draining: {Stopping, Killed, Exited},
	Stopping: {Killed, Exited},
	Killed:   {Exited},
	Exited:   {},
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
