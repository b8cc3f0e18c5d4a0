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
	// handshakeTime is how long a worker goes on accepting when its slot's clients come to another berth:
	// a handshake that had begun before may take so long.
	handshakeTime = time.Second
	// coolingTime is how long a berth that was left is kept for its slot's next worker: a client whose handshake
	// takes even longer comes to the right slot at least.
	coolingTime = 10 * time.Second
)

// berth is a listener on each address: in every group, the member of the berth's number. Each worker that
// lives has one, and shares it with nobody. But a worker that takes the place of one which has died, or
// has left its slot, takes over its berth, and the connections that wait there. The rule says when the master
// accepts from a berth's listeners.
type berth struct {
	number  int
	slot    int            // of the workers that have it, or had it last
	leases  []*Lease       // of workers that live
	accepts map[Group]bool // where the worker that fills the slot accepts by itself
	used    bool           // a slot's clients have come here since nobody had it
	spoiled bool           // no worker may get it any more
	left    time.Time      // when the slot moved to another berth; zero: it has not
	doing   map[Group]task // what the master does about its listeners
	watch   listenerWatch
	queue   queueWatch
	warned  []string // what was logged of its workers already
}

func newBerth(number, slot int) *berth {
	return &berth{number: number, slot: slot, doing: make(map[Group]task)}
}

// isFit tells whether a berth can be lent: whether all that workers have set on its listeners can be undone.
func (r *Route) isFit(b *berth) bool {
	if !b.spoiled && len(b.leases) == 0 {
		return r.clean(b)
	}
	return !b.spoiled
}

// vacant returns a berth that nobody has and where nobody waits, and opens one if there is none. A berth that another slot's
// clients came to must have cooled down.
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

// clean makes a berth's listeners as new, and tells whether they are. No worker has them any more.
func (r *Route) clean(b *berth) bool {
	isNew := true
	for _, g := range r.groups {
		err := g.Clean(b.number, r.blocking)
		isNew = isNew && err == nil
		switch {
		case errors.Is(err, reuseport.ErrSpoiled):
			r.spoil(b, g)
		case err != nil:
			r.log.Error("cannot make a slot's listener as new", "slot", b.slot, "address", g.Addr().String(), "err", err)
		}
	}
	return isNew
}

// spoil notes that no worker may get a berth any more.
func (r *Route) spoil(b *berth, g Group) {
	if b.spoiled {
		return
	}
	b.spoiled = true
	r.log.Warn("a worker has locked the socket filter of its slot's listener, which nobody can undo, even if it keeps clients away; the slot's next worker gets another listener",
		"slot", b.slot, "address", g.Addr().String(), "remedy", fmt.Sprintf("replace it: handfast drain %d; and have the program set no SO_LOCK_FILTER", b.slot))
}

// moveSlot makes a berth the one that a slot's clients come to, from the next steer on.
func (r *Route) moveSlot(slot int, to *berth) {
	if from := r.berthOf[slot]; from != nil && from != to {
		from.left = time.Now()
	}
	r.berthOf[slot] = to
	to.slot, to.used, to.left = slot, true, time.Time{}
}

// steer tells the kernel to which berth each slot's clients come.
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
		waiting, _, _ := g.Queue(b.number) // on an error nobody listens, so nobody waits
		sum += waiting
	}
	return sum
}

// setBlocking makes a listener blocking.
func setBlocking(file *os.File) error {
	return sock.Control(file, func(fd int) error { return unix.SetNonblock(fd, false) })
}
