package kernelroute

// slotState is the state of the slot whose clients come to a listener.
type slotState int

const (
	slotFilled slotState = iota // a worker is in it
	slotEmpty                   // its worker has ended or left, or was not ready yet
	slotNone                    // no slot's clients come to the listener, or none any more
)

func (s slotState) String() string { return [...]string{"filled", "empty", "none"}[s] }

// situation is all that decides whether the master accepts from a listener.
type situation struct {
	slot     slotState
	accepts  bool // the worker that fills the slot accepts from this listener by itself
	handsOff bool // workers of this kind can be handed connections
	leased   bool // a worker that lives has the listener
	used     bool // clients have come since nobody had it
}

// action is what the master does about a listener.
type action int

const (
	leaveAlone    action = iota // it does not accept
	acceptNow                   // it accepts, and hands off
	acceptLater                 // the same, after queueTime
	refuseNow                   // it accepts all that come, to refuse
	refuseOverdue               // it accepts connections that have waited for longer than they may, to refuse
)

func (a action) String() string {
	return [...]string{"leave alone", "accept now", "accept later", "refuse now", "refuse overdue"}[a]
}

// rule says what the master does about a listener:
//
//	slot    worker             clients    if it can be handed connections  if it takes listeners only
//	filled  accepts            any        leave alone                      leave alone
//	filled  does not accept    any        accept now                       refuse now
//	empty   any, or none       any        accept later                     refuse overdue
//	none    has the listener   have come  accept later                     refuse overdue
//	none    none               have come  accept now                       refuse now
//	none    any, or none       none came  leave alone                      leave alone
//
// "Later" leaves time to the worker that is expected to accept: the next one of an empty slot, or one whose slot
// has moved to another worker and which drains. "Now" is where nobody else will accept.
//
// Whether listeners block is no question of its own. Accepting in order to hand off makes a listener non-blocking
// (Balancer.AcceptShared), refusing does not. So workers that can be handed connections never get listeners that
// block (New), and those that take listeners only may, as servers expect that know nothing of handfast.
func rule(s situation) action {
	now, later := acceptNow, acceptLater
	if !s.handsOff {
		now, later = refuseNow, refuseOverdue
	}
	switch s.slot {
	case slotFilled:
		if s.accepts {
			return leaveAlone
		}
		return now
	case slotEmpty:
		return later
	}
	switch {
	case !s.used:
		return leaveAlone
	case s.leased:
		return later
	default:
		return now
	}
}
