package kernelroute

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/sockdiag"
	"github.com/handfast/handfast/master/supervisor"
)

// fakeLink is that of a worker which accepts on all addresses, or on none.
type fakeLink struct {
	supervisor.Link
	name    string
	accepts bool
	asked   func(netip.AddrPort) // before Accepts answers, if it is not nil
}

func (l *fakeLink) Worker() balancer.Worker { return l }
func (l *fakeLink) Accepts(at netip.AddrPort) bool {
	if l.asked != nil {
		l.asked(at)
	}
	return l.accepts
}

func (l *fakeLink) Deliver(conns []fdpass.Handoff) (int, error) { return 0, fdpass.ErrFull }

// Configurations for kinds of workers: those that take connections, too, and those that know nothing of us.
var (
	taking  = Config{HandsOff: true}
	foreign = Config{Blocking: true}
)

// fakeGroup is a group whose listeners are no sockets: the test says how many wait where, and what workers have done.
type fakeGroup struct {
	t       *testing.T
	journal *journal
	name    string
	addr    *net.TCPAddr

	mu       sync.Mutex
	members  []*os.File
	queue    []int // how many wait, by member
	memberOf []int // as Steer was told
	blocking []bool
	cleaned  []int // how often
	spoiled  map[int]bool
	four     *fakeGroup // for IPv4 alone
	found    reuseport.Repaired
	repairs  int
	came     []uint64
	stopped  bool
	closed   bool

	growErr, steerErr, repairErr, cleanErr error
	repairTime                             time.Duration
}

func newFakeGroup(t *testing.T, j *journal, name, addr string, members int) *fakeGroup {
	g := &fakeGroup{t: t, journal: j, name: name, addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)), spoiled: make(map[int]bool)}
	g.Grow(members)
	return g
}

func (g *fakeGroup) Addr() *net.TCPAddr  { return g.addr }
func (g *fakeGroup) Bound() *net.TCPAddr { return g.addr }
func (g *fakeGroup) Members() int        { return len(g.members) }

func (g *fakeGroup) Grow(members int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.growErr == nil && len(g.members) < members {
		file, err := os.Open(os.DevNull) // so that each listener is a file of its own, and can be closed
		if err != nil {
			g.t.Fatal(err)
		}
		g.members, g.queue = append(g.members, file), append(g.queue, 0)
		g.blocking, g.cleaned = append(g.blocking, false), append(g.cleaned, 0)
	}
	return g.growErr
}

func (g *fakeGroup) Steer(members []int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.steerErr == nil {
		g.memberOf = slices.Clone(members)
	}
	return g.steerErr
}

func (g *fakeGroup) Listener(i int) *os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.members[i]
}

func (g *fakeGroup) Absent() *os.File { return nil }

func (g *fakeGroup) Queue(i int) (waiting, limit int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.queue[i], 4096, nil
}

// waits has so many connections wait at a member.
func (g *fakeGroup) waits(i, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue[i] = n
}

func (g *fakeGroup) Clean(i int, blocking bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.spoiled[i] {
		return reuseport.ErrSpoiled
	}
	if g.cleanErr != nil {
		return g.cleanErr
	}
	g.blocking[i] = blocking
	g.cleaned[i]++
	return nil
}

func (g *fakeGroup) Repair() (reuseport.Repaired, error) {
	time.Sleep(g.repairTime)
	g.mu.Lock()
	defer g.mu.Unlock()
	found := g.found
	g.found = reuseport.Repaired{Locked: found.Locked} // which are told of each time
	g.repairs++
	return found, g.repairErr
}

// looks returns how often Repair was called.
func (g *fakeGroup) looks() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.repairs
}

func (g *fakeGroup) OnlyIPv4() (Group, error) {
	if g.four == nil {
		return nil, g.growErr
	}
	return g.four, nil
}

func (g *fakeGroup) StopHandshakes() error {
	g.journal.note("%s stops handshakes", g.name)
	g.stopped = true
	return nil
}

func (g *fakeGroup) SaveCounting(*reexec.Bundle) *reuseport.SavedProgram { return nil }

func (g *fakeGroup) Came() []uint64 { return g.came }

func (g *fakeGroup) Save(*reexec.Bundle) reuseport.Saved {
	saved := reuseport.Saved{Network: "tcp", Addr: g.addr, At: g.memberOf}
	for i := range g.members {
		saved.Members = append(saved.Members, 100+i)
	}
	return saved
}

func (g *fakeGroup) Close() error {
	g.journal.note("%s closes", g.name)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, file := range g.members {
		file.Close()
	}
	return nil
}

// fakeAcceptor notes what is accepted where.
type fakeAcceptor struct {
	w    *world
	name string
}

func (a *fakeAcceptor) AcceptShared(ctx context.Context, listener *os.File) error {
	where := a.w.nameOf(listener)
	a.w.journal.note("accepts at %s", where)
	<-ctx.Done()
	a.w.journal.note("leaves %s", where)
	return nil
}

func (a *fakeAcceptor) RefuseOverdue(tick time.Duration, overdue func(int) int) func(context.Context, *os.File) error {
	return func(ctx context.Context, listener *os.File) error {
		for look := time.NewTicker(tick); ; {
			g, i := a.w.find(listener)
			waiting, _, _ := g.Queue(i)
			n := 0
			if waiting > 0 {
				n = min(overdue(waiting), waiting)
			}
			if n > 0 {
				a.w.journal.note("refuses %d at %s", n, a.w.nameOf(listener))
				g.waits(i, waiting-n)
			}
			select {
			case <-look.C:
			case <-ctx.Done():
				look.Stop()
				return nil
			}
		}
	}
}

func (a *fakeAcceptor) TakeBacklog(listener *os.File) error {
	g, i := a.w.find(listener)
	a.w.journal.note("%s takes %d at %s", a.name, g.queue[i], a.w.nameOf(listener))
	g.waits(i, 0)
	return nil
}

func (a *fakeAcceptor) NoteOpen(clients []netip.Addr) { a.w.told = append(a.w.told, len(clients)) }

func (a *fakeAcceptor) Shutdown(context.Context) { a.w.journal.note("%s shuts down", a.name) }

// fakeHolder is a process that has a listener open until it has not.
type fakeHolder struct{ holds atomic.Bool }

func (h *fakeHolder) Holds() bool { return h.holds.Load() }

// world is a Route with nothing real around it, in simulated time. Workers are named.
type world struct {
	*testing.T
	*Route
	journal *journal
	log     *strings.Builder
	workers map[string]*Lease

	machineMu sync.Mutex
	all       []*fakeGroup
	sockets   []sockdiag.Socket // as the kernel lists them
	holder    *fakeHolder       // of any listener; nil: none is found
	hidden    error             // that nobody may look

	told   []int             // of so many clients, each time
	owned  []reuseport.Owner // who have strangers' listeners
	opened func(address string) (Group, error)
}

// patienceAtTest is how long clients wait in these tests where they cannot be handed off, in ticks of tickAtTest.
const (
	patienceAtTest = 5 * time.Second
	tickAtTest     = 100 * time.Millisecond
)

// inWorld runs a test with slots' listeners for workers of a kind.
func inWorld(t *testing.T, kind Config, slots int, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newWorld(t, kind, slots)) })
}

func newWorld(t *testing.T, kind Config, slots int) *world {
	w := &world{T: t, journal: newJournal(), log: new(strings.Builder), workers: make(map[string]*Lease)}
	var groups []Group
	if slots > 0 {
		groups = append(groups, w.group("A", "10.0.0.99:80", slots))
	}
	if w.makeRoute(kind, groups); slots > 0 {
		w.Resize(slots)
	}
	t.Cleanup(func() {
		w.acceptors.stopAll()
		w.acceptors.running.Wait()
		for _, g := range w.all {
			if !g.closed {
				g.Close()
			}
		}
	})
	return w
}

// makeRoute makes a Route, in the place of the one that was there.
func (w *world) makeRoute(kind Config, groups []Group) {
	placing := balancer.DefaultConfig()
	placing.RetryDelay, placing.MaxRetries = tickAtTest, int(patienceAtTest/tickAtTest)
	placing.Logger = hclog.New(&hclog.LoggerOptions{Output: w.log})
	kind.Finishing = func(link supervisor.Link) { w.journal.note("%s is finishing", link.(*fakeLink).name) }
	w.Route = newRoute(kind, placing, groups)
	w.table = balancer.NewTable(1)
	w.balancer, w.refuser = &fakeAcceptor{w, "balancer"}, &fakeAcceptor{w, "refuser"}
	w.clock.list = func(uint16, ...sockdiag.State) ([]sockdiag.Socket, error) {
		w.machineMu.Lock()
		defer w.machineMu.Unlock()
		return slices.Clone(w.sockets), nil
	}
	w.machine = Surroundings{
		Listen: func(_ context.Context, address string, _ hash.Config, memberOf []int, members int) (Group, error) {
			if w.opened == nil {
				return nil, errors.New("nothing can be opened")
			}
			return w.opened(address)
		},
		FindHolder: func(int, []*os.File) (Holder, error) {
			w.journal.note("looks for who holds a listener")
			w.machineMu.Lock()
			defer w.machineMu.Unlock()
			if w.holder == nil {
				return nil, w.hidden
			}
			return w.holder, w.hidden
		},
		Owners: func(reuseport.Stranger) []reuseport.Owner { return w.owned },
	}
}

// group makes one that is closed at the end.
func (w *world) group(name, addr string, members int) *fakeGroup {
	g := newFakeGroup(w.T, w.journal, name, addr, members)
	w.machineMu.Lock()
	defer w.machineMu.Unlock()
	w.all = append(w.all, g)
	return g
}

func (w *world) find(listener *os.File) (*fakeGroup, int) {
	w.machineMu.Lock()
	defer w.machineMu.Unlock()
	for _, g := range w.all {
		g.mu.Lock()
		i := slices.Index(g.members, listener)
		g.mu.Unlock()
		if i >= 0 {
			return g, i
		}
	}
	panic("no listener of ours")
}

func (w *world) nameOf(listener *os.File) string {
	g, i := w.find(listener)
	return fmt.Sprint(g.name, i)
}

// start starts a worker, which takes a berth.
func (w *world) start(name string, slot int, accepts bool) *Lease {
	w.Helper()
	link, err := w.OpenLink(supervisor.Seat{Slot: slot}, func(l *Lease) (Link, error) {
		w.workers[name] = l
		return &fakeLink{name: name, accepts: accepts}, nil
	})
	if err != nil {
		w.Fatal(err)
	}
	w.HandleEvent(supervisor.Event{Kind: supervisor.WorkerStarted, Link: link, PID: 1000 + len(w.workers)})
	return w.workers[name]
}

func (w *world) fill(name string) { w.Fill(w.workers[name].slot, w.workers[name].link) }

// happens tells the Route what happens to a worker.
func (w *world) happens(kind supervisor.EventKind, name string) {
	w.HandleEvent(supervisor.Event{Kind: kind, Link: w.workers[name].link, PID: w.workers[name].pid})
}

func (w *world) exits(name string) { w.happens(supervisor.WorkerExited, name) }

// look describes each berth: the slot whose clients come to it, the workers that have it, and what the master does about it.
func (r *Route) look() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, b := range r.berths {
		text := "-"
		if slot := slices.Index(r.berthOf, b); slot >= 0 {
			text = fmt.Sprint(slot)
		}
		for _, l := range b.leases {
			if link, ok := l.link.(*fakeLink); ok {
				text += " " + link.name
			}
		}
		_, accepts := r.acceptors.current[r.groups[0].Listener(b.number)]
		now := r.situationAt(b, r.groups[0])
		does := b.doing[r.groups[0]].action
		switch {
		case does != rule(now):
			text += fmt.Sprintf(": %v, not %v", does, rule(now))
		case does == leaveAlone && now.slot == slotFilled:
			text += ": serves"
		case does == leaveAlone:
			text += ": none"
		case does == acceptLater, does == refuseOverdue:
			text += ": wait"
		default:
			text += ": now"
		}
		if accepts {
			text += "!"
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// expect compares with what look says, and with where the groups' clients come to.
func (w *world) expect(step, want string) {
	w.Helper()
	if got := w.look(); got != want {
		w.Fatalf("%s:\n\tis   %s\n\twant %s", step, got, want)
	}
	var numbers []int
	for _, b := range w.berthOf {
		numbers = append(numbers, b.number)
	}
	for _, g := range w.groups {
		if at := g.(*fakeGroup).memberOf; !slices.Equal(at, numbers) {
			w.Fatalf("%s: clients come to members %v, want %v", step, at, numbers)
		}
	}
}

// notes compares with what the world has noted since the last time.
func (w *world) notes(step string, want ...string) {
	w.Helper()
	w.journal.expect(w.T, step, want...)
}

// logged counts the lines that have all of the words.
func (w *world) logged(words ...string) (n int) {
	for line := range strings.Lines(w.log.String()) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			n++
		}
	}
	return n
}
