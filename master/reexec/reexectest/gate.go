package reexectest

import (
	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// Passing makes of a worker's Deliver or Copy one that passes the gate, as the balancer does.
func Passing(deliver func([]fdpass.Handoff) (int, error)) func([]fdpass.Handoff) (int, error) {
	return func(hs []fdpass.Handoff) (int, error) {
		reexec.Lock.RLock()
		defer reexec.Lock.RUnlock()
		return deliver(hs)
	}
}
