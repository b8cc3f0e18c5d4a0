package kernelroute

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/master/sockdiag"
)

// queueAt is a berth's queue, with connections that are numbered in the order in which they come.
type queueAt struct {
	*world
	t       *testing.T
	lease   *Lease
	member  int
	waiting []uint64
}

// serveQueue begins to serve with a worker in slot 0.
func serveQueue(t *testing.T, f func(q *queueAt)) {
	t.Helper()
	inWorld(t, foreign, 2, func(w *world) {
		q := &queueAt{world: w, t: t, lease: w.start("a", 0, true)}
		w.fill("a")
		stop, _, ended := w.serve(0)
		f(q)
		stop()
		<-ended
	})
}

// come has n connections come.
func (q *queueAt) come(n int) {
	for range n {
		q.world.comes(q.member, 0)
		q.machineMu.Lock()
		q.waiting = append(q.waiting, uint64(len(q.sockets)))
		q.machineMu.Unlock()
	}
	q.all[0].waits(q.member, len(q.waiting))
}

// take has a process accept the oldest n. It closes them at once, or has them still.
func (q *queueAt) take(n int, closed bool) {
	q.machineMu.Lock()
	for _, cookie := range q.waiting[:n] {
		i := slices.IndexFunc(q.sockets, func(s sockdiag.Socket) bool { return s.Cookie == cookie })
		if q.sockets[i].Inode = 7; closed {
			q.sockets[i].State = sockdiag.FinWait2
			q.sockets[i].Local, q.sockets[i].Remote = q.sockets[i].Remote, q.sockets[i].Local // not to be found again
		}
	}
	q.machineMu.Unlock()
	q.waiting = q.waiting[n:]
	q.all[0].waits(q.member, len(q.waiting))
}

// beat is what passes between two questions.
func (q *queueAt) beat(step string, want bool) {
	q.t.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	if got := q.lease.Takes(); got != want {
		q.t.Errorf("%s: takes %v", step, got)
	}
	synctest.Wait()
}

// TestQueueStalls: nobody takes what waits, whatever else comes.
func TestQueueStalls(t *testing.T) {
	serveQueue(t, func(q *queueAt) {
		q.beat("nothing waits", true)
		q.come(1)
		q.beat("one has come", true)
		q.beat("it was seen for the first time", true)
		for range 5 {
			q.come(3)
			q.beat("and others come", false)
		}
		q.beat("and nobody comes", false)
		q.take(1, true)
		q.beat("the look before knows nothing of that", false)
		q.beat("one was taken", true)
		q.beat("and no other", false)
		q.take(len(q.waiting), true)
		q.beat("all are", true)
	})
}

// TestQueueMoves: a queue that is as long as ever, because others come as fast as some are taken, moves.
func TestQueueMoves(t *testing.T) {
	for name, closed := range map[string]bool{"and closed": true, "and kept": false} {
		t.Run(name, func(t *testing.T) {
			serveQueue(t, func(q *queueAt) {
				q.come(10)
				q.beat("they are seen", true)
				for range 10 {
					q.take(1, closed)
					q.come(1)
					q.beat("one for another", true)
				}
			})
		})
	}
}

// TestQueueOfDead: clients that give up while they wait are in the queue still, though in no list. Nobody has taken them.
func TestQueueOfDead(t *testing.T) {
	serveQueue(t, func(q *queueAt) {
		q.come(3)
		q.beat("they are seen", true)
		q.beat("nobody takes them", true)
		q.machineMu.Lock()
		q.sockets = nil
		q.machineMu.Unlock()
		q.beat("stalled", false)
		q.beat("still", false)
	})
}

// TestQueueUnseen: where connections cannot be listed nobody is stalled.
func TestQueueUnseen(t *testing.T) {
	serveQueue(t, func(q *queueAt) {
		q.clock.list = func(uint16, ...sockdiag.State) ([]sockdiag.Socket, error) { return nil, errors.New("hidden") }
		q.come(3)
		for range 5 {
			q.beat("unseen", true)
		}
	})
	if takes := (*Lease)(nil).Takes(); !takes {
		t.Error("a worker without listeners is stalled")
	}
}

// TestQueueOfReplaced: a worker that was replaced, and lingers, is judged by what waits at its old listener alone.
func TestQueueOfReplaced(t *testing.T) {
	serveQueue(t, func(q *queueAt) {
		q.come(2)
		q.beat("they are seen", true)
		q.start("b", 0, true)
		q.fill("b")
		for i := range 4 {
			q.machineMu.Lock()
			n := uint64(len(q.sockets) + 1)
			q.sockets = append(q.sockets, sockdiag.Socket{State: sockdiag.Established, Cookie: n, Local: q.sockets[0].Local, Remote: q.sockets[0].Remote})
			q.machineMu.Unlock()
			q.beat("others come to b", i < 1)
		}
	})
}
