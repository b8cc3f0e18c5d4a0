package kernelroute

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/reuseport"
)

// repair puts right what workers did to their listeners, and logs other processes that listen on our addresses.
func (r *Route) repair() {
	r.repairListeners()
	r.mu.Lock()
	strangers := r.strangers
	r.strangers = nil
	r.mu.Unlock()
	for _, other := range strangers {
		r.warnStranger(other)
	}
}

// repairListeners puts right what workers did to their listeners. A worker may do it again at once, so it is logged once
// for each worker.
func (r *Route) repairListeners() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed error
	for _, g := range r.groups {
		found, err := g.Repair()
		at := g.Addr().String()
		for _, i := range found.Shut {
			r.acceptors.restart(g.Listener(i))
			r.warnOnce(i, "a worker has shut down its slot's listener, which resets connections that wait there; it listens again", at)
		}
		for _, i := range found.Filtered {
			r.warnOnce(i, "a worker has set a socket filter on its slot's listener, which was removed", at)
		}
		for _, i := range found.Locked {
			r.spoil(r.berths[i], g)
		}
		for _, joined := range found.Joined {
			r.strangers = append(r.strangers, stranger{joined, at})
		}
		failed = errors.Join(failed, err)
	}
	if text := fmt.Sprint(failed); failed == nil {
		r.repairErr = ""
	} else if text != r.repairErr {
		r.repairErr = text
		r.log.Error("cannot repair the slots' listeners", "err", failed)
	}
}

// warnOnce logs what the worker at a berth has done, unless that was logged of it before.
func (r *Route) warnOnce(number int, message, address string) {
	b := r.berths[number]
	if slices.Contains(b.warned, message) {
		return
	}
	b.warned = append(b.warned, message)
	pid := 0
	for _, l := range b.leases {
		pid = l.pid
	}
	r.log.Warn(message, "slot", b.slot, "pid", pid, "address", address)
}

// stranger is a listener of another process at an address.
type stranger struct {
	reuseport.Stranger
	address string
}

// warnStranger logs a process that listens on our address with a socket of its own. It looks at all processes, and
// anybody can cause that, so it does so once in strangerInterval.
func (r *Route) warnStranger(other stranger) {
	r.warning.Lock()
	defer r.warning.Unlock()
	if time.Since(r.strangerTold) < strangerInterval {
		r.strangersUntold++
		return
	}
	r.strangerTold = time.Now()
	const gets = "it gets no clients while handfast runs, and all of them after that"
	owners := r.machine.Owners(other.Stranger)
	fields := []any{"address", other.address, "left_out", r.strangersUntold}
	r.strangersUntold = 0
	if len(owners) == 0 {
		r.log.Warn("another process, which cannot be seen from here, listens on the same address with a socket of its own (SO_REUSEPORT)", append(fields, "clients", gets)...)
		return
	}
	for _, o := range owners {
		if l := r.leaseOfGroup(o.PID); l != nil {
			r.log.Warn("worker listens with a socket of its own (SO_REUSEPORT) beside its slot's listener; it gets no clients there, and is not ready by it",
				append(fields, "slot", l.slot, "pid", o.PID, "command", o.Command, "remedy", r.sharingRemedy)...)
			return
		}
	}
	r.log.Warn("another process listens on the same address with a socket of its own (SO_REUSEPORT)",
		append(fields, "clients", gets, "pid", owners[0].PID, "command", owners[0].Command, "remedy", "end it, or have it listen elsewhere")...)
}

// leaseOfGroup returns the lease of the worker whose process group a process belongs to.
func (r *Route) leaseOfGroup(pid int) *Lease {
	group, err := unix.Getpgid(pid)
	if err != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaseOf(nil, group)
}
