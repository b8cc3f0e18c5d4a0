package kernelroute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// testPatience bounds every wait of these tests.
const testPatience = 20 * time.Second

// stage is a Route without a supervisor: a script plays that, and workers are named.
type stage struct {
	*testing.T
	*Route
	balancer *balancer.Balancer
	workers  map[string]*Lease
	log      *strings.Builder
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
	return &stage{t, s, kind.Balancer, make(map[string]*Lease), log}
}

// start starts a worker, which takes a berth.
func (s *stage) start(name string, slot int, accepts bool) *Lease {
	s.Helper()
	link, err := s.OpenLink(supervisor.Seat{Slot: slot}, func(l *Lease) (Link, error) {
		s.workers[name] = l
		return &fakeLink{name: name, accepts: accepts}, nil
	})
	if err != nil {
		s.Fatal(err)
	}
	s.HandleEvent(supervisor.Event{Kind: supervisor.WorkerStarted, Link: link, PID: 1000 + len(s.workers)})
	return s.workers[name]
}

func (s *stage) fill(name string) { s.Fill(s.workers[name].slot, s.workers[name].link) }

// happens tells the Route what happens to a worker.
func (s *stage) happens(kind supervisor.EventKind, name string) {
	s.HandleEvent(supervisor.Event{Kind: kind, Link: s.workers[name].link, PID: s.workers[name].pid})
}

// comes has a client of a slot connect, and returns the berth where it waits.
func (s *stage) comes(slot int) int {
	s.Helper()
	before := make([]int, len(s.berths))
	for i, b := range s.berths {
		before[i] = s.queued(b)
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: clientOf(s.hash, slot, len(s.berthOf)).AsSlice()}}
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
func clientOf(config hash.Config, slot, slots int) netip.Addr {
	for i := 1; ; i++ {
		addr := netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)})
		if config.Key(addr).Slot(slots) == slot {
			return addr
		}
	}
}

func (s *stage) expect(step, want string) {
	s.Helper()
	if got := s.look(); got != want {
		s.Fatalf("%s:\n\tis   %s\n\twant %s", step, got, want)
	}
}

// TestBerthsInTheKernel plays a reload and a crash with the kernel's own groups: clients come to the berths that the Route
// has in its tables.
func TestBerthsInTheKernel(t *testing.T) {
	t.Parallel()
	for kind, cfg := range map[string]Config{"taking": taking, "foreign": foreign} {
		for _, name := range []string{"reload", "crash"} {
			t.Run(fmt.Sprintf("%s/%s", kind, name), func(t *testing.T) {
				s := newStage(t, cfg, slotsOf(name))
				play(s, scripts[name])
				for slot, b := range s.berthOf {
					if s.filled[slot] == nil {
						continue
					}
					if i := s.comes(slot); i != b.number {
						t.Errorf("a client of slot %d comes to berth %d, want %d", slot, i, b.number)
					}
				}
			})
		}
	}
}

// TestBerthBlocks: a worker that has a berth for itself gets listeners as new, whatever the worker before
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
			s.happens(supervisor.WorkerExited, name)
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
	s.happens(supervisor.WorkerExited, "a")
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

// waitingTime is how long clients wait in these tests.
const waitingTime = 300 * time.Millisecond

// call connects, and returns what the answer begins with and how long that took.
func call(t *testing.T, to string) (answer string, took time.Duration) {
	began := time.Now()
	conn, err := net.Dial("tcp", to)
	if err != nil {
		t.Error(err)
		return "", 0
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(testPatience))
	io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return string(all), time.Since(began)
}

// Row A3: the slot is empty for a long time, since the next worker is not ready yet, but it serves
// already. Nobody is refused, since nobody waits for as long as they may.
func TestServedBeforeReady(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		s := newStageAt(t, address, foreign, 1, waitingTime/10, 10)
		s.start("a", 0, true)
		ln, err := net.FileListener(s.workers["a"].Files()[0])
		if err != nil {
			t.Fatal(err)
		}
		to := s.groups[0].Addr().String()
		if s.groups[0].Addr().IP.IsUnspecified() {
			to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.groups[0].Addr().AddrPort().Port()).String()
		}
		var serving, clients sync.WaitGroup
		serving.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				io.ReadFull(conn, make([]byte, 18))
				time.Sleep(5 * time.Millisecond)
				io.WriteString(conn, "served")
				conn.Close()
			}
		})
		const enough = 20
		var served atomic.Int32
		var longest, early atomic.Int64 // a wait, and one that was refused before its time
		began := time.Now()
		goesOn := func() bool {
			passed := time.Since(began)
			return passed < 4*waitingTime || served.Load() < enough && passed < testPatience
		}
		for range 8 {
			clients.Go(func() {
				for goesOn() && !t.Failed() {
					answer, took := call(t, to)
					storeMax(&longest, took)
					if answer == "served" {
						served.Add(1)
					} else if took < waitingTime {
						storeMax(&early, took)
					}
				}
			})
		}
		clients.Wait()
		ln.Close()
		serving.Wait()
		// On a machine that is so busy that somebody is overdue, the worker may take that client just before the master
		// does, which then takes the next one.
		if took := early.Load(); took > 0 && longest.Load() < int64(waitingTime) {
			t.Errorf("%s: a client is refused after %v", address, time.Duration(took))
		}
		if n := served.Load(); n < enough && !t.Failed() {
			t.Errorf("%s: %d are served", address, n)
		}
	}
}

func storeMax(to *atomic.Int64, d time.Duration) {
	for {
		before := to.Load()
		if before >= int64(d) || to.CompareAndSwap(before, int64(d)) {
			return
		}
	}
}

// TestOverdue: each client of an empty slot is refused when its own time is over, no matter when
// others came, and those of another slot are not.
func TestOverdue(t *testing.T) {
	t.Parallel()
	s := newStageAt(t, "127.0.0.1:0", foreign, 1, waitingTime/10, 10)
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			answer, took := call(t, s.groups[0].Addr().String())
			if !strings.HasPrefix(answer, "HTTP/1.1 502 ") || took < waitingTime {
				t.Errorf("answered %q after %v, want 502 after %v", answer, took, waitingTime)
			}
			if took > waitingTime+testPatience/4 {
				t.Errorf("refused after %v, want %v", took, waitingTime)
			}
		})
		time.Sleep(waitingTime / 10)
	}
	clients.Wait()
}
