package balancer

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Outcome is what became of one connection in the master.
type Outcome struct {
	Peer   netip.AddrPort // the other end of the socket, which may be a proxy; zero: it is a Unix socket
	Client netip.Addr     // zero if it was not found out
	Slot   int            // where the client belongs; -1 if that was not found out
	Worker Worker         // that has it; nil: it has ended
	Parked time.Duration  // how long it has waited; 0: not at all
	Err    error          // why it was refused; clientip.ErrGone: its client had ended it; else nil
}

// Reason is a word for why the connection has ended; empty when a worker has it.
func (o *Outcome) Reason() string {
	if o.Err == nil {
		return ""
	}
	if reason, ok := reasons[o.Err]; ok {
		return reason
	}
	return "other"
}

// Reasons lists what Reason may return for a connection that has ended.
func Reasons() []string {
	all := append(slices.Collect(maps.Values(reasons)), "other")
	slices.Sort(all)
	return slices.Compact(all)
}

// LogOutcomes has every outcome logged, beside what is done with some already.
func (c *Config) LogOutcomes(log func(Outcome)) {
	told := c.OnOutcome
	c.EveryOutcome = true
	c.OnOutcome = func(o Outcome) {
		if told != nil {
			told(o)
		}
		log(o)
	}
}
