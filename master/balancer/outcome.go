package balancer

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/clientip"
)

// Outcome is what became of one connection in the master.
type Outcome struct {
	Peer   netip.AddrPort // the other end of the socket, which may be a proxy
	Client netip.Addr     // whom it is from; zero if that was not found out
	Slot   int            // where the client belongs; -1 if that was not found out
	Worker Worker         // who has it; nil: it has ended
	Parked time.Duration  // how long it has waited; 0: not at all
	Err    error          // why it was refused; clientip.ErrGone: its client had ended it; else nil
}

// reasons are the words for why a connection has ended, for machines.
var reasons = map[error]string{
	errEmpty:                   "slot_empty",
	errCrowded:                 "too_many_parked",
	errCrowdedSilent:           "too_many_parked",
	errGreedy:                  "too_many_of_client",
	errStopping:                "stopping",
	errUnwilling:               "worker_unwilling",
	errNoFile:                  "no_file_descriptor",
	fdpass.ErrLimit:            "too_many_open",
	fdpass.ErrFull:             "mailbox_full",
	fdpass.ErrInFlight:         "too_many_in_flight",
	fdpass.ErrClosed:           "mailbox_closed",
	fdpass.ErrNoFiles:          "no_file_descriptor",
	clientip.ErrSilent:         "no_request",
	clientip.ErrPartial:        "request_incomplete",
	clientip.ErrTooLarge:       "request_too_large",
	clientip.ErrNoProxyHeader:  "no_proxy_header",
	clientip.ErrBadProxyHeader: "bad_proxy_header",
	clientip.ErrProxyForbidden: "proxy_not_trusted",
	clientip.ErrGone:           "client_gone",
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

// tell reports an outcome to whoever is interested: of a connection that w has, or that has
// ended because of err.
func (b *Balancer) tell(a *arrival, slot int, w Worker, err error) {
	if b.cfg.OnOutcome == nil {
		return
	}
	o := Outcome{Peer: a.Client, Client: a.client.Addr, Slot: slot, Worker: w, Err: err}
	if !a.parked.IsZero() {
		o.Parked = time.Since(a.parked)
	}
	b.cfg.OnOutcome(o)
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
