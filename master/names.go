package master

import (
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// names gives each worker the token by which sessions name it (HANDFAST_ROUTE), and says to the balancer whom tokens name. Upgrades keep
// the secret, and so the tokens.
type names struct {
	table  *balancer.Table
	secret [clientip.SecretSize]byte
	reader *clientip.Names
	told   bool      // to workers, too
	since  time.Time // the table knows when requests came back

	lingers time.Duration                                     // how long a replaced worker waits for what may come back
	heard   func(pid int, lately time.Duration) (bool, error) // whether a client has sent a worker something; nil: we see requests

	mu     sync.Mutex
	starts uint32
	byPID  map[int]clientip.Name // of the processes that there are
}

// named is what is known of a worker since it has a name.
type named struct {
	of      *names
	name    clientip.Name
	pid     int           // 0: it was not started yet
	closed  chan struct{} // when its link is
	watched sync.Once
	heard   atomic.Int64 // when a client of it was seen to have sent something, in nanoseconds since 1970; 0: never
}

// namesPart is where a bundle has them, if there are any.
var namesPart = reexec.Part{Name: "names", Version: 1}

// savedNames is what the next program needs for the same tokens.
type savedNames struct {
	Secret [clientip.SecretSize]byte
	Starts uint32
	Counts [2]uint64 // balancer.Table.SessionCounts
	ByPID  map[int]clientip.Name
}

// newNames goes on with those that the program before has left, if any.
func newNames(before *savedNames) *names {
	n := &names{since: time.Now(), byPID: make(map[int]clientip.Name)}
	if before != nil {
		n.secret, n.starts = before.Secret, before.Starts
		for pid, name := range before.ByPID {
			n.byPID[pid] = name
		}
	} else {
		rand.Read(n.secret[:]) // never fails
	}
	n.reader = clientip.NewNames(n.secret)
	return n
}

func (n *names) save() *savedNames {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &savedNames{Secret: n.secret, Starts: n.starts, ByPID: make(map[int]clientip.Name)}
	s.Counts[0], s.Counts[1] = n.table.SessionCounts()
	for pid, name := range n.byPID {
		s.ByPID[pid] = name
	}
	return s
}

// open gives a name to a worker that is about to be started.
func (n *names) open(l *workerLink, seat supervisor.Seat) {
	if n == nil || l.worker == nil {
		return
	}
	n.mu.Lock()
	n.starts++
	name := clientip.Name{Slot: seat.Slot, Generation: seat.Generation, Start: n.starts}
	n.mu.Unlock()
	n.give(l, name)
}

// reopen gives a worker of the program before the name that it has, if it has one.
func (n *names) reopen(l *workerLink, pid int) {
	if n == nil || l.worker == nil {
		return
	}
	n.mu.Lock()
	name, found := n.byPID[pid]
	n.mu.Unlock()
	if found {
		n.give(l, name)
		l.named.pid = pid
	}
}

func (n *names) give(l *workerLink, name clientip.Name) {
	l.named = &named{of: n, name: name, closed: make(chan struct{})}
	n.table.Name(name, l.worker)
}

// of returns the name at the end of a session's id.
func (n *names) of(id string) (name clientip.Name, found bool) {
	if n == nil || !n.told {
		return name, false
	}
	token, found := forwarded.TokenIn(id)
	if found {
		name, found = n.reader.Name(token)
	}
	return name, found
}

// find returns the worker that a name's sessions are with: the one of the name, or else the one in its slot; nil: there is none.
func (n *names) find(s *supervisor.Snapshot, name clientip.Name) *supervisor.WorkerStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range s.Draining {
		if n.byPID[w.PID] == name {
			return w
		}
	}
	if name.Slot < len(s.Slots) {
		return s.Slots[name.Slot].Worker
	}
	return nil
}

// Env implements supervisor.Link.
func (l *workerLink) Env(get func(string) string) []string {
	env := l.Link.Env(get)
	token := ""
	if l.named != nil && l.named.of.told {
		token = l.named.of.reader.Token(l.named.name).String()
	}
	if token != "" || get(fdpass.EnvRoute) != "" { // which is also what --route may come from
		env = append(env[:len(env):len(env)], fdpass.EnvRoute+"="+token)
	}
	return env
}

// Started implements supervisor.Link.
func (l *workerLink) Started(p supervisor.Process) {
	if w := l.named; w != nil {
		w.pid = p.PID()
		w.of.mu.Lock()
		w.of.byPID[w.pid] = w.name
		w.of.mu.Unlock()
	}
	l.Link.Started(p)
}

// Close implements supervisor.Link.
func (l *workerLink) Close() {
	if w := l.named; w != nil {
		close(w.closed)
		w.of.table.Unname(w.name)
		w.of.mu.Lock()
		if w.of.byPID[w.pid] == w.name { // the number may be another worker's by now
			delete(w.of.byPID, w.pid)
		}
		w.of.mu.Unlock()
	}
	l.Link.Close()
}
