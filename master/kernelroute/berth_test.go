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
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// fakeLink is that of a worker which accepts on all addresses, or on none.
type fakeLink struct {
	supervisor.Link
	name    string
	accepts bool
}

func (l *fakeLink) Worker() balancer.Worker     { return l }
func (l *fakeLink) Accepts(netip.AddrPort) bool { return l.accepts }

func (l *fakeLink) Deliver(conns []fdpass.Handoff) (int, error) { return 0, fdpass.ErrFull }

// What kinds of workers need: those that take connections, too, and those that know nothing of us.
var (
	taking  = Config{HandsOff: true}
	foreign = Config{Blocking: true}
)

// testPatience bounds every wait of these tests.
const testPatience = 20 * time.Second

// stage is a Route without a supervisor: a script plays that, and workers are named.
type stage struct {
	*testing.T
	*Route
	workers map[string]*Lease
	log     *strings.Builder
}

// newStage opens slots' listeners for workers of a kind. Nobody is refused for long.
func newStage(t *testing.T, kind Config, slots int) *stage {
	t.Helper()
	return newStageAt(t, "127.0.0.1:0", kind, slots, time.Hour, 1)
}

// newStageAt is newStage where clients have so much patience.
func newStageAt(t *testing.T, address string, kind Config, slots int, delay time.Duration, tries int) *stage {
	t.Helper()
	g, err := reuseport.Listen(t.Context(), address, balancer.DefaultConfig().Clients.Hash, slots)
	if err != nil {
		t.Fatal(err)
	}
	cfg := balancer.DefaultConfig()
	cfg.RetryDelay, cfg.MaxRetries = delay, tries
	log := new(strings.Builder)
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: log})
	table := balancer.NewTable(1)
	kind.Groups = []*reuseport.Group{g}
	if kind.Balancer, err = balancer.New(cfg, table); err != nil {
		t.Fatal(err)
	}
	s, err := New(kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close(t.Context())
		now, cancel := context.WithCancel(t.Context())
		cancel()
		kind.Balancer.Shutdown(now)
	})
	s.Resize(slots)
	return &stage{t, s, make(map[string]*Lease), log}
}

// start starts a worker, which takes a berth.
func (s *stage) start(name string, slot int, accepts bool) {
	s.Helper()
	link, err := s.OpenLink(supervisor.Seat{Slot: slot}, func(l *Lease) (Link, error) {
		s.workers[name] = l
		return &fakeLink{name: name, accepts: accepts}, nil
	})
	if err != nil {
		s.Fatal(err)
	}
	s.tell(supervisor.WorkerStarted, name, link)
}

// tell tells of a worker.
func (s *stage) tell(kind supervisor.EventKind, name string, link supervisor.Link) {
	s.HandleEvent(supervisor.Event{Kind: kind, Link: link, PID: 1000 + slices.Index(slicesSorted(s.workers), name)})
}

func slicesSorted(workers map[string]*Lease) (names []string) {
	for name := range workers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (s *stage) fill(name string) { s.Fill(s.workers[name].slot, s.workers[name].link) }
func (s *stage) exits(name string) {
	s.HandleEvent(supervisor.Event{Kind: supervisor.WorkerExited, Link: s.workers[name].link})
}
func (s *stage) terminated(name string) {
	s.HandleEvent(supervisor.Event{Kind: supervisor.WorkerTerminated, Link: s.workers[name].link})
}

// comes has a client of a slot connect, and returns the berth where it waits.
func (s *stage) comes(slot int) int {
	s.Helper()
	before := make([]int, len(s.berths))
	for i, b := range s.berths {
		before[i] = s.queued(b)
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: clientOf(s.balancer, slot, len(s.berthOf)).AsSlice()}}
	for end := time.Now().Add(testPatience); time.Now().Before(end); {
		taken := s.balancer.Stats().Accepted
		conn, err := d.DialContext(s.Context(), "tcp", s.groups[0].Addr().String())
		if err != nil {
			s.Fatal(err)
		}
		s.Cleanup(func() { conn.Close() })
		// The master may take one that comes while it is leaving a berth to its worker.
		for s.balancer.Stats().Accepted == taken && time.Now().Before(end) {
			for i, b := range s.berths {
				if s.queued(b) > before[i] {
					return i
				}
			}
			time.Sleep(time.Millisecond)
		}
	}
	s.Fatal("the client is nowhere")
	return -1
}

// clientOf returns an address that belongs to a slot.
func clientOf(b *balancer.Balancer, slot, slots int) netip.Addr {
	for i := 1; ; i++ {
		addr := netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)})
		if b.Config().Clients.Hash.Key(addr).Slot(slots) == slot {
			return addr
		}
	}
}

// look describes all: for each berth whose clients come to it, who has it, and what the master does about it.
func (s *stage) look() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, b := range s.berths {
		text := "-"
		if slot := slices.Index(s.berthOf, b); slot >= 0 {
			text = fmt.Sprint(slot)
		}
		for _, l := range b.leases {
			if link, ok := l.link.(*fakeLink); ok {
				text += " " + link.name
			}
		}
		_, attended := s.acceptors.current[s.groups[0].Listener(b.number)]
		now := s.situationAt(b, s.groups[0])
		does := b.doing[s.groups[0]].action
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
		if attended {
			text += "!"
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

func (s *stage) expect(step, want string) {
	s.Helper()
	if got := s.look(); got != want {
		s.Fatalf("%s:\n\tis   %s\n\twant %s", step, got, want)
	}
}

// step is what happens, and what then is, for each berth: the slot whose clients come to it, who
// has it, when the master accepts from it, and whether it does (!).
type step struct {
	what string
	do   func(*stage)
	want string
}

// TestBerths walks the states of slots and berths.
func TestBerths(t *testing.T) {
	t.Parallel()
	start := func(name string, slot int) func(*stage) {
		return func(s *stage) { s.start(name, slot, true) }
	}
	fill := func(name string) func(*stage) { return func(s *stage) { s.fill(name) } }
	exits := func(name string) func(*stage) { return func(s *stage) { s.exits(name) } }
	terminated := func(name string) func(*stage) { return func(s *stage) { s.terminated(name) } }
	empty := func(slot int) func(*stage) { return func(s *stage) { s.Empty(slot) } }
	resize := func(n int) func(*stage) { return func(s *stage) { s.Resize(n) } }
	cools := func(s *stage) {
		for _, b := range s.berths {
			b.left = b.left.Add(-time.Hour)
		}
	}
	for kind, cfg := range map[string]Config{"taking": taking, "foreign": foreign} {
		for name, steps := range map[string][]step{
			"reload": {
				{"nobody is there", func(*stage) {}, "0: wait!; 1: wait!"},
				{"a starts", start("a", 0), "0 a: wait!; 1: wait!"},
				{"a fills", fill("a"), "0 a: serves; 1: wait!"},
				{"b starts in 1", start("b", 1), "0 a: serves; 1 b: wait!"},
				{"b fills", fill("b"), "0 a: serves; 1 b: serves"},
				{"a2 starts", start("a2", 0), "0 a: serves; 1 b: serves; - a2: none"},
				{"a2 fills", fill("a2"), "- a: wait!; 1 b: serves; 0 a2: serves"},
				{"b2 starts while a drains", start("b2", 1), "- a: wait!; 1 b: serves; 0 a2: serves; - b2: none"},
				{"b2 fills", fill("b2"), "- a: wait!; - b: wait!; 0 a2: serves; 1 b2: serves"},
				{"a ends", exits("a"), "-: now!; - b: wait!; 0 a2: serves; 1 b2: serves"},
				{"a3 starts where a was", start("a3", 0), "- a3: none; - b: wait!; 0 a2: serves; 1 b2: serves"},
				{"a3 fills", fill("a3"), "0 a3: serves; - b: wait!; - a2: wait!; 1 b2: serves"},
				{"b3 starts while b and b2 live", start("b3", 1), "0 a3: serves; - b: wait!; - a2: wait!; 1 b2: serves; - b3: none"},
			},
			"crash": {
				{"a starts", start("a", 0), "0 a: wait!"},
				{"a fills", fill("a"), "0 a: serves"},
				{"a ends", exits("a"), "0: serves"},
				{"its slot is empty", empty(0), "0: wait!"},
				{"a2 starts with its queue", start("a2", 0), "0 a2: wait!"},
				{"a2 ends before it is ready", exits("a2"), "0: wait!"},
				{"a3 starts with its queue", start("a3", 0), "0 a3: wait!"},
				{"a3 is not ready in time", terminated("a3"), "0 a3: wait!"},
				{"a4 shares with it", start("a4", 0), "0 a3 a4: wait!"},
				{"a4 fills", fill("a4"), "0 a3 a4: serves"},
				{"a3 ends", exits("a3"), "0 a4: serves"},
				{"a4 leaves", empty(0), "0 a4: wait!"},
				{"a5 takes its place", start("a5", 0), "0 a4 a5: wait!"},
			},
			"crash of the new one puts the old one back": {
				{"a starts", start("a", 0), "0 a: wait!"},
				{"a fills", fill("a"), "0 a: serves"},
				{"b starts", start("b", 0), "0 a: serves; - b: none"},
				{"b fills", fill("b"), "- a: wait!; 0 b: serves"},
				{"b ends", exits("b"), "- a: wait!; 0: serves"},
				{"a fills again", fill("a"), "0 a: serves; -: now!"},
				{"c starts", start("c", 0), "0 a: serves; - c: none"},
			},
			"crash during a reload": {
				{"a starts", start("a", 0), "0 a: wait!"},
				{"a fills", fill("a"), "0 a: serves"},
				{"b starts", start("b", 0), "0 a: serves; - b: none"},
				{"a ends", exits("a"), "0: serves; - b: none"},
				{"new clients wait for b", empty(0), "-: now!; 0 b: wait!"},
				{"b ends, too", exits("b"), "-: now!; 0: wait!"},
				{"c starts", start("c", 0), "-: now!; 0 c: wait!"},
				{"c fills", fill("c"), "-: now!; 0 c: serves"},
			},
			"crash while the new one is not wanted any more": {
				{"a starts", start("a", 0), "0 a: wait!"},
				{"a fills", fill("a"), "0 a: serves"},
				{"b starts", start("b", 0), "0 a: serves; - b: none"},
				{"b is dismissed", terminated("b"), "0 a: serves; - b: none"},
				{"a ends", exits("a"), "0: serves; - b: none"},
				{"clients wait where they did", empty(0), "0: wait!; - b: none"},
				{"c starts there", start("c", 0), "0 c: wait!; - b: none"},
				{"b ends, to whom nobody came", exits("b"), "0 c: wait!; -: none"},
			},
			"scale": {
				{"a starts", start("a", 0), "0 a: wait!"},
				{"a fills", fill("a"), "0 a: serves"},
				{"b starts in a slot to be", start("b", 1), "0 a: serves; - b: none"},
				{"there are two slots", resize(2), "0 a: serves; 1 b: wait!"},
				{"b fills", fill("b"), "0 a: serves; 1 b: serves"},
				{"there is one slot", resize(1), "0 a: serves; - b: wait!"},
				{"b ends", exits("b"), "0 a: serves; -: now!"},
				{"a2 does not get what was another's", start("a2", 0), "0 a: serves; -: now!; - a2: none"},
				{"after a while it may", cools, "0 a: serves; -: now!; - a2: none"},
				{"as a3", start("a3", 0), "0 a: serves; - a3: none; - a2: none"},
				{"there are three slots at once", resize(3), "0 a: serves; - a3: none; - a2: none; 1: wait!; 2: wait!"},
			},
		} {
			t.Run(fmt.Sprintf("%s/%s", kind, name), func(t *testing.T) {
				slots := 1
				if name == "reload" {
					slots = 2
				}
				s := newStage(t, cfg, slots)
				for _, step := range steps {
					step.do(s)
					s.expect(step.what, step.want)
				}
				for slot, b := range s.berthOf { // the kernel agrees
					if s.filled[slot] != nil {
						if i := s.comes(slot); i != b.number {
							t.Errorf("a client of slot %d comes to berth %d, want %d", slot, i, b.number)
						}
					}
				}
			})
		}
	}
}

// TestBerthBlocks: who has a berth for itself gets listeners as new, whatever the worker before
// has set, and such as servers of its kind expect.
func TestBerthBlocks(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{taking, foreign} {
		kind, blocks := fmt.Sprintf("blocking %v", cfg.Blocking), cfg.Blocking
		s := newStage(t, cfg, 1)
		for _, name := range []string{"a", "b"} {
			s.start(name, 0, true)
			file := s.workers[name].Files()[0]
			check := func(what string, got, want int, err error) {
				if err != nil || got != want {
					t.Errorf("%v, worker %s: %s is %d (%v), want %d", kind, name, what, got, err, want)
				}
			}
			sock.Control(file, func(fd int) error {
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
				if blocking := flags&unix.O_NONBLOCK == 0; blocking != blocks {
					t.Errorf("%v, worker %s: blocking is %v (%v), want %v", kind, name, blocking, err, blocks)
				}
				unix.SetNonblock(fd, blocks)
				deferred, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT)
				check("TCP_DEFER_ACCEPT", deferred, 0, err)
				return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30)
			})
			s.exits(name)
		}
	}
}

// TestSpoiled: a worker has locked a filter that keeps everybody away. Row A6: the slot gets
// another listener when the worker has ended, and that is said once.
func TestSpoiled(t *testing.T) {
	t.Parallel()
	s := newStage(t, foreign, 1)
	s.start("a", 0, true)
	s.fill("a")
	err := sock.Control(s.workers["a"].Files()[0], func(fd int) error {
		dropAll := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
		err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &dropAll[0]})
		if err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1)
	})
	if errors.Is(err, os.ErrPermission) {
		t.Skip("no filters without privilege here")
	}
	for range 3 {
		s.repair()
	}
	s.expect("a is deaf", "0 a: serves")
	s.exits("a")
	s.Empty(0)
	s.expect("a has ended", "-: now!; 0: wait!")
	if i := s.comes(0); i != 1 {
		t.Errorf("a client comes to berth %d, want 1", i)
	}
	s.start("b", 0, true)
	s.fill("b")
	s.expect("b is there", "-: now!; 0 b: serves")
	s.start("c", 0, true)
	s.expect("c gets a new one", "-: now!; 0 b: serves; - c: none")
	if n := strings.Count(s.log.String(), "has locked the socket filter"); n != 1 || !strings.Contains(s.log.String(), "slot=0") {
		t.Errorf("said %d times, want once and with the slot: %s", n, s.log)
	}
}
