package worker

import (
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/handfast/handfast/fdpass"
)

// spread closes what is open when the time of a worker that drains is nearly over, one connection after the other. Else all of them would end with
// the process, and all clients connect anew in the same moment. nil: the master does not ask for that (--drain-spread).
type spread struct {
	after, over time.Duration // since the beginning of the drain, and how long it takes

	mu    sync.Mutex
	conns map[*Conn]struct{} // that are open

	// wait returns true at a time, and false as soon as idle is closed.
	wait func(until time.Time, idle <-chan struct{}) bool
}

// newSpread reads what the master asks for.
func newSpread() *spread {
	place, ok := Self()
	timeout, over := seconds64(fdpass.EnvDrainTimeout), seconds64(fdpass.EnvDrainSpread)
	if !ok || over <= 0 || over > timeout || place.Slot < 0 || place.Slot >= place.Slots {
		return nil
	}
	s := &spread{conns: make(map[*Conn]struct{}), wait: waitUntil}
	s.after, s.over = window(place, timeout, over)
	return s
}

// seconds64 reads a number of seconds; 0 if it is none.
func seconds64(variable string) time.Duration {
	n, err := strconv.ParseFloat(os.Getenv(variable), 64)
	if err != nil || !(n >= 0 && n < 1e9) {
		return 0
	}
	return time.Duration(n * float64(time.Second))
}

// window is the part of a slot. The master has the last slot's worker end first, and each at the end of its part; together they are the
// last part of the timeout, without gaps.
func window(p Place, timeout, over time.Duration) (after, long time.Duration) {
	long = over / time.Duration(p.Slots)
	return timeout - over*time.Duration(p.Slot)/time.Duration(p.Slots) - long, long
}

func (s *spread) add(c *Conn) {
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conns[c] = struct{}{}
	}
}

func (s *spread) remove(c *Conn) {
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
	}
}

// begin is called when the worker is to drain, once, with the time when it was replaced. The goroutine that it starts ends when idle is closed, or
// when all is closed.
func (s *spread) begin(replaced time.Time, idle <-chan struct{}) {
	if s != nil {
		go s.run(replaced.Add(s.after), idle)
	}
}

func (s *spread) run(first time.Time, idle <-chan struct{}) {
	if !s.wait(first, idle) {
		return
	}
	s.mu.Lock()
	var open []*Conn // in no order
	for c := range s.conns {
		open = append(open, c)
	}
	s.mu.Unlock()
	for i, c := range open {
		if !s.wait(first.Add(s.over*time.Duration(2*i+1)/time.Duration(2*len(open))), idle) {
			return
		}
		c.Close()
	}
}

func waitUntil(t time.Time, idle <-chan struct{}) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-idle:
		return false
	}
}
