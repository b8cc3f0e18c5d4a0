package supervisor

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// recycleYoung is how long a worker has to have served, so that it counts as chance, and not as what its successors do, too, that it
	// has to be recycled.
	recycleYoung = 10 * time.Minute
	// maxRecyclePause is the longest time between two recyclings when workers keep needing them young.
	maxRecyclePause = 5 * time.Minute
	// ageJitter is how much of MaxAge a worker may be recycled earlier, so that workers which were started together are not recycled together.
	ageJitter = 0.1
	// memoryInterval is the time between two looks at the memory of workers.
	memoryInterval = 10 * time.Second
)

// recycling replaces workers in their slots one after the other, although they serve: each by a new one of its generation, which takes the slot
// over when it is ready, before the old one lingers or drains.
type recycling struct {
	next      time.Time // no worker is recycled before
	young     int       // workers in a row that had to be recycled young
	failures  int       // successors in a row that have failed
	measured  time.Time // when memory was looked at last
	measuring bool
}

// wishRecycled notes that a worker is to be recycled. The first reason counts.
func (w *worker) wishRecycled(why error) {
	if w.recycle == nil {
		w.recycle, w.recycleSince = why, time.Now()
	}
}

// tooOld says that a worker is as old as it may be.
var errTooOld = errors.New("it is as old as --max-age")

// dueAt is when a worker is as old as it may be. The jitter comes from its number and start, so that an upgrade does not change it.
func (c *Config) dueAt(w *worker) time.Time {
	h := fnv.New32a()
	h.Write([]byte(strconv.Itoa(w.pid()) + w.started.UTC().Format(time.RFC3339Nano)))
	share := ageJitter * float64(h.Sum32()%1000) / 1000
	return w.started.Add(c.MaxAge - time.Duration(float64(c.MaxAge)*share))
}

// stepRecycle begins to recycle the worker that has waited longest for it, if it is time. Only one is recycled at a time.
func (s *Supervisor) stepRecycle(now time.Time) {
	if s.cfg.MaxMemory > 0 && !s.recycling.measuring && !now.Before(s.recycling.measured.Add(memoryInterval)) {
		s.measure(now)
	}
	if s.cfg.MaxAge > 0 {
		for _, sl := range s.slots {
			if w := sl.current; w != nil && w.state == Serving && !now.Before(s.cfg.dueAt(w)) {
				w.wishRecycled(errTooOld)
			}
		}
	}
	w := s.nextRecycled()
	if w == nil || now.Before(s.recycling.next) {
		return
	}
	if err := errors.Join(s.roomForOne(), w.slot.checkStart()); err != nil {
		s.recycleFailed(w.slot.number, err)
		return
	}
	if w.recycle != errTooOld && w.recycleSince.Sub(w.readyAt) < recycleYoung {
		s.recycling.young++
	} else {
		s.recycling.young = 0
	}
	s.pauseRecycling()
	e := w.event(WorkerRecycled)
	e.Err = w.recycle
	s.emit(e)
	s.spawn(w.slot, w.slot.generation)
	w.slot.next.recycles = true
}

// nextRecycled returns the worker that is to be recycled next; nil: none, or not now.
func (s *Supervisor) nextRecycled() (first *worker) {
	if s.reload != nil || s.stopping || s.quiescing {
		return nil
	}
	for _, sl := range s.slots {
		if sl.standby != nil || sl.next != nil && sl.next.recycles {
			return nil
		}
	}
	for _, sl := range s.slots {
		if w := sl.current; w != nil && w.recycle != nil && w.state == Serving && sl.next == nil && sl.number < s.published &&
			(first == nil || w.recycleSince.Before(first.recycleSince)) {
			first = w
		}
	}
	return first
}

// pauseRecycling says when the next worker may be recycled: the later, the more had to be that were young, and the more successors have failed.
func (s *Supervisor) pauseRecycling() {
	r := &s.recycling
	delay := time.Duration(0)
	for range r.young + r.failures {
		delay = min(max(2*delay, s.cfg.BackoffMin), maxRecyclePause)
	}
	r.next = time.Now().Add(delay)
}

// recycled is told how the start of a worker has ended that takes the place of one which is recycled.
func (s *Supervisor) recycled(w *worker, why error) {
	w.recycles = false
	switch {
	case why == nil:
		s.recycling.failures = 0
	case errors.Is(why, errOvertaken) || errors.Is(why, errUpgraded) || errors.Is(why, ErrStopped) || errors.Is(why, errRemoved):
	default:
		s.recycleFailed(w.slot.number, why)
	}
}

// recycleFailed leaves a worker where it is, since its successor has failed, and tries later.
func (s *Supervisor) recycleFailed(slot int, why error) {
	s.recycling.failures++
	s.pauseRecycling()
	s.logLater(hclog.Warn, "a worker that is to be recycled stays, since no other can take its place", "slot", slot, "err", why,
		"next_try", time.Until(s.recycling.next).Round(time.Millisecond).String())
}

// recycleWait returns how long nothing of all that is due.
func (s *Supervisor) recycleWait(now time.Time) time.Duration {
	next := never
	if s.cfg.MaxMemory > 0 && !s.recycling.measuring {
		next = min(next, s.recycling.measured.Add(memoryInterval).Sub(now))
	}
	for _, sl := range s.slots {
		if w := sl.current; s.cfg.MaxAge > 0 && w != nil && w.state == Serving && w.recycle == nil {
			next = min(next, s.cfg.dueAt(w).Sub(now))
		}
	}
	if s.nextRecycled() != nil {
		next = min(next, s.recycling.next.Sub(now))
	}
	return next
}

// measure looks at the memory of all workers that serve, in a goroutine, since that reads files.
func (s *Supervisor) measure(now time.Time) {
	s.recycling.measuring, s.recycling.measured = true, now
	pids := make(map[*worker]int)
	for _, sl := range s.slots {
		if w := sl.current; w != nil && w.state == Serving {
			pids[w] = w.pid()
		}
	}
	s.running.Go(func() {
		used := make(map[*worker]int64)
		for w, pid := range pids {
			used[w] = s.cfg.Memory(pid)
		}
		s.post(func() { s.handleMemory(used) })
	})
}

func (s *Supervisor) handleMemory(used map[*worker]int64) {
	s.recycling.measuring = false
	for w, n := range used {
		if n == 0 || w.state != Serving || w.ended {
			continue
		}
		w.memory, w.cached = n, nil
		if n > s.cfg.MaxMemory {
			w.wishRecycled(fmt.Errorf("it has %s of memory, more than --max-memory %s", bytesText(n), bytesText(s.cfg.MaxMemory)))
		}
	}
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	const unit = 1 << 10
	switch {
	case n >= 10*unit*unit || n >= unit*unit && n%(unit*unit) == 0:
		return fmt.Sprintf("%d MiB", n/(unit*unit))
	default:
		return fmt.Sprintf("%d KiB", n/unit)
	}
}
