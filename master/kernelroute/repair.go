package kernelroute

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/reuseport"
)

// repair puts right what workers did to their listeners, and tells of others who listen at our addresses.
func (s *Route) repair() {
	s.putRight()
	s.mu.Lock()
	joined := s.joined
	s.joined = nil
	s.mu.Unlock()
	for _, n := range joined {
		s.meet(n)
	}
}

// putRight puts right what workers did to their listeners. A worker may do it again at once, so each
// is told of once.
func (s *Route) putRight() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		found, err := g.Repair()
		at := g.Addr().String()
		for _, i := range found.Shut {
			s.acceptors.restart(g.Listener(i))
			s.warnOnce(i, "a worker has shut its slot's listener down, which resets who waits there; it listens again", at)
		}
		for _, i := range found.Filtered {
			s.warnOnce(i, "a worker has set a socket filter on its slot's listener, which was removed", at)
		}
		for _, i := range found.Locked {
			s.spoil(s.berths[i], g)
		}
		for _, stranger := range found.Joined {
			s.joined = append(s.joined, newcomer{stranger, at})
		}
		if text := fmt.Sprint(err); err == nil {
			s.failed = ""
		} else if text != s.failed {
			s.failed = text
			s.log.Error("a slot's listener is not what it was", "err", err)
		}
	}
}

// warnOnce tells of what the worker at a berth has done.
func (s *Route) warnOnce(number int, message, address string) {
	b := s.berths[number]
	if slices.Contains(b.warned, message) {
		return
	}
	b.warned = append(b.warned, message)
	pid := 0
	for _, l := range b.leases {
		pid = l.pid
	}
	s.log.Warn(message, "slot", b.slot, "pid", pid, "address", address)
}

// newcomer is a stranger who listens at an address.
type newcomer struct {
	reuseport.Stranger
	address string
}

// meet tells of a process that listens on our address with a socket of its own. It looks at all
// processes, and anybody can have it do so: so not too often.
func (s *Route) meet(n newcomer) {
	s.meeting.Lock()
	defer s.meeting.Unlock()
	if time.Since(s.met) < meetInterval {
		s.unmet++
		return
	}
	s.met = time.Now()
	const gets = "it gets no clients while handfast runs, and all of them after that"
	owners := n.Owners()
	fields := []any{"address", n.address, "left_out", s.unmet}
	s.unmet = 0
	if len(owners) == 0 {
		s.log.Warn("another process, which cannot be seen from here, listens on the same address with a socket of its own (SO_REUSEPORT)", append(fields, "clients", gets)...)
		return
	}
	for _, o := range owners {
		if l := s.leaseOfGroup(o.PID); l != nil {
			s.log.Warn("worker listens with a socket of its own (SO_REUSEPORT) beside its slot's listener; it gets no clients there, and is not ready by it",
				append(fields, "slot", l.slot, "pid", o.PID, "command", o.Command, "remedy", s.howToShare)...)
			return
		}
	}
	s.log.Warn("another process listens on the same address with a socket of its own (SO_REUSEPORT)",
		append(fields, "clients", gets, "pid", owners[0].PID, "command", owners[0].Command, "remedy", "end it, or have it listen elsewhere")...)
}

// leaseOfGroup returns the lease of the worker whose process group a process belongs to.
func (s *Route) leaseOfGroup(pid int) *Lease {
	group, err := unix.Getpgid(pid)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaseOf(nil, group)
}
