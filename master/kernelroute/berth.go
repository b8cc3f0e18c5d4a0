package kernelroute

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reuseport"
)

const (
	// handshakeTime is how long a worker goes on accepting when its slot's clients are led elsewhere:
	// those whose first packet had come before may be under way for so long.
	handshakeTime = time.Second
	// coolingTime is how long a berth is kept for its slot: who comes even later comes to the right
	// slot at least.
	coolingTime = 10 * time.Second
)

// berth is a listener on each address: the members of that number of all groups. A worker that
// lives has one, and shares it with nobody, except that a worker which takes the place of one
// that has died, or has left, takes its berth over, and with it those who wait there. When the master
// accepts from its listeners is for rule to say.
type berth struct {
	number  int
	slot    int                       // whose workers have it, or had it last
	leases  []*Lease                  // of workers that live
	accepts map[*reuseport.Group]bool // the worker that fills the slot, where
	used    bool                      // clients have come since it was new, or clean
	spoiled bool                      // nobody may get it any more
	left    time.Time                 // when its slot's clients were led elsewhere
	doing   map[*reuseport.Group]task // what the master does about its listeners
	closed  closed
	warned  []string // of what its workers have done
}

func newBerth(number, slot int) *berth {
	return &berth{number: number, slot: slot, doing: make(map[*reuseport.Group]task)}
}

// isFit tells whether a berth can be lent, as far as what its workers have set is concerned.
func (s *Route) isFit(b *berth) bool {
	if !b.spoiled && len(b.leases) == 0 {
		s.clean(b)
	}
	return !b.spoiled
}

// vacant returns a berth that nobody has, and opens one if there is none.
func (s *Route) vacant(slot int) (*berth, error) {
	isVacant := func(b *berth) bool {
		return len(b.leases) == 0 && !slices.Contains(s.at, b) && s.queued(b) == 0 && s.isFit(b)
	}
	ofSlot := func(b *berth) bool { return b.slot == slot && isVacant(b) }
	ofOthers := func(b *berth) bool { return (!b.used || time.Since(b.left) > coolingTime) && isVacant(b) }
	for _, suits := range []func(*berth) bool{ofSlot, ofOthers} {
		if i := slices.IndexFunc(s.berths, suits); i >= 0 {
			return s.berths[i], nil
		}
	}
	for _, g := range s.groups {
		if err := g.Grow(len(s.berths) + 1); err != nil {
			return nil, err
		}
	}
	b := newBerth(len(s.berths), slot)
	s.berths = append(s.berths, b)
	s.clean(b)
	return b, nil
}

// clean makes a berth's listeners what they were, when no worker has them any more.
func (s *Route) clean(b *berth) {
	for _, g := range s.groups {
		err := g.Clean(b.number, s.blocking)
		switch {
		case errors.Is(err, reuseport.ErrSpoiled):
			s.spoil(b, g)
		case err != nil:
			s.log.Error("a slot's listener is not what it was", "slot", b.slot, "address", g.Addr().String(), "err", err)
		}
	}
}

// spoil has nobody get a berth any more.
func (s *Route) spoil(b *berth, g *reuseport.Group) {
	if b.spoiled {
		return
	}
	b.spoiled = true
	s.log.Warn("a worker has locked the socket filter of its slot's listener: if that keeps clients away, nobody can change it; the slot's next worker gets another listener",
		"slot", b.slot, "address", g.Addr().String(), "remedy", fmt.Sprintf("replace it: handfast drain %d; and have the program set no SO_LOCK_FILTER", b.slot))
}

// lead has the clients of a slot come to a berth, once steer is called.
func (s *Route) lead(slot int, to *berth) {
	if from := s.at[slot]; from != nil && from != to {
		from.left = time.Now()
	}
	s.at[slot] = to
	to.slot, to.used, to.left = slot, true, time.Time{}
}

// steer tells the kernel where slots' clients belong.
func (s *Route) steer() {
	numbers := make([]int, len(s.at))
	for slot, b := range s.at {
		numbers[slot] = b.number
	}
	for _, g := range s.groups {
		if err := g.Steer(numbers); err != nil {
			s.log.Error("the kernel does not give clients to their slots", "address", g.Addr().String(), "slots", len(numbers), "err", err)
		}
	}
}

// queued returns how many connections wait at a berth.
func (s *Route) queued(b *berth) (sum int) {
	for _, g := range s.groups {
		waiting, _, _ := g.Queue(b.number) // nobody waits where nobody listens
		sum += waiting
	}
	return sum
}

// block makes a listener so.
func block(file *os.File) error {
	return sock.Control(file, func(fd int) error { return unix.SetNonblock(fd, false) })
}
