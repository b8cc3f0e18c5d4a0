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
	slot    int            // whose workers have it, or had it last
	leases  []*Lease       // of workers that live
	accepts map[group]bool // the worker that fills the slot, where
	used    bool           // clients have come since it was new, or clean
	spoiled bool           // nobody may get it any more
	left    time.Time      // when its slot's clients were led elsewhere
	doing   map[group]task // what the master does about its listeners
	watch   listenerWatch
	warned  []string // of what its workers have done
}

func newBerth(number, slot int) *berth {
	return &berth{number: number, slot: slot, doing: make(map[group]task)}
}

// isFit tells whether a berth can be lent, as far as what its workers have set is concerned.
func (r *Route) isFit(b *berth) bool {
	if !b.spoiled && len(b.leases) == 0 {
		r.clean(b)
	}
	return !b.spoiled
}

// vacant returns a berth that nobody has, and opens one if there is none.
func (r *Route) vacant(slot int) (*berth, error) {
	isVacant := func(b *berth) bool {
		return len(b.leases) == 0 && !slices.Contains(r.berthOf, b) && r.queued(b) == 0 && r.isFit(b)
	}
	ofSlot := func(b *berth) bool { return b.slot == slot && isVacant(b) }
	ofOthers := func(b *berth) bool { return (!b.used || time.Since(b.left) > coolingTime) && isVacant(b) }
	for _, suits := range []func(*berth) bool{ofSlot, ofOthers} {
		if i := slices.IndexFunc(r.berths, suits); i >= 0 {
			return r.berths[i], nil
		}
	}
	for _, g := range r.groups {
		if err := g.Grow(len(r.berths) + 1); err != nil {
			return nil, err
		}
	}
	b := newBerth(len(r.berths), slot)
	r.berths = append(r.berths, b)
	r.clean(b)
	return b, nil
}

// clean makes a berth's listeners what they were, when no worker has them any more.
func (r *Route) clean(b *berth) {
	for _, g := range r.groups {
		err := g.Clean(b.number, r.blocking)
		switch {
		case errors.Is(err, reuseport.ErrSpoiled):
			r.spoil(b, g)
		case err != nil:
			r.log.Error("a slot's listener is not what it was", "slot", b.slot, "address", g.Addr().String(), "err", err)
		}
	}
}

// spoil has nobody get a berth any more.
func (r *Route) spoil(b *berth, g group) {
	if b.spoiled {
		return
	}
	b.spoiled = true
	r.log.Warn("a worker has locked the socket filter of its slot's listener: if that keeps clients away, nobody can change it; the slot's next worker gets another listener",
		"slot", b.slot, "address", g.Addr().String(), "remedy", fmt.Sprintf("replace it: handfast drain %d; and have the program set no SO_LOCK_FILTER", b.slot))
}

// moveSlot has the clients of a slot come to a berth, once steer is called.
func (r *Route) moveSlot(slot int, to *berth) {
	if from := r.berthOf[slot]; from != nil && from != to {
		from.left = time.Now()
	}
	r.berthOf[slot] = to
	to.slot, to.used, to.left = slot, true, time.Time{}
}

// steer tells the kernel where slots' clients belong.
func (r *Route) steer() {
	numbers := make([]int, len(r.berthOf))
	for slot, b := range r.berthOf {
		numbers[slot] = b.number
	}
	for _, g := range r.groups {
		if err := g.Steer(numbers); err != nil {
			r.log.Error("the kernel does not give clients to their slots", "address", g.Addr().String(), "slots", len(numbers), "err", err)
		}
	}
}

// queued returns how many connections wait at a berth.
func (r *Route) queued(b *berth) (sum int) {
	for _, g := range r.groups {
		waiting, _, _ := g.Queue(b.number) // nobody waits where nobody listens
		sum += waiting
	}
	return sum
}

// setBlocking makes a listener blocking.
func setBlocking(file *os.File) error {
	return sock.Control(file, func(fd int) error { return unix.SetNonblock(fd, false) })
}
