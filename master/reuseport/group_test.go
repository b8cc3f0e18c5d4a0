package reuseport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
)

func TestSlotsWithinLimits(t *testing.T) {
	for _, slots := range []int{-1, 0, MaxSlots + 1} {
		if g, err := Listen(t.Context(), "127.0.0.1:0", hash.DefaultConfig(), slots); err == nil {
			g.Close()
			t.Errorf("%d slots: no error", slots)
		}
	}
	if _, err := Listen(t.Context(), "127.0.0.1:0", hash.Config{IPv4Prefix: 33}, 1); err == nil {
		t.Error("a prefix of 33 bits: no error")
	}
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
	for _, members := range [][]int{nil, make([]int, MaxSlots+1), {0, 2}, {-1}} {
		if err := g.Steer(members); err == nil {
			t.Errorf("steered to members %v: no error", members)
		}
	}
	if g.Listener(-1) != nil || g.Listener(2) != nil {
		t.Error("listeners of slots that there are not")
	}
	if _, _, err := g.Queue(2); err == nil {
		t.Error("the queue of a slot that there is not")
	}
}

// TestListener: what a slot's listener is, and stays when it is given to a process.
func TestListener(t *testing.T) {
	g := mustListen(t, ":0", hash.DefaultConfig(), 3)
	for slot := range 3 {
		file := g.Listener(slot)
		if err := file.SetDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("slot %d is watched by Go's poller (%v): each client would wake this process", slot, err)
		}
		child := exec.Command(os.Args[0], "-test.run=^$")
		child.ExtraFiles = []*os.File{file}
		if err := child.Run(); err != nil {
			t.Fatal(err)
		}
		flags, _ := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
		if flags&unix.O_NONBLOCK == 0 {
			t.Errorf("slot %d became blocking", slot)
		}
		if flags, _ := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("slot %d leaks into child processes", slot)
		}
		for _, option := range []struct {
			name                string
			level, option, want int
		}{
			{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP}, // not MPTCP
			{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
			{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0},
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		} {
			if got, err := unix.GetsockoptInt(int(file.Fd()), option.level, option.option); got != option.want {
				t.Errorf("slot %d: %s is %d (%v), want %d", slot, option.name, got, err, option.want)
			}
		}
	}
}

// TestAddressForms: each form listens on the families that it says.
func TestAddressForms(t *testing.T) {
	for _, form := range []struct {
		address   string
		four, six bool
	}{
		{":0", true, true},
		{"0.0.0.0:0", true, false},
		{"[::]:0", false, true},
		{"127.0.0.1:0", true, false},
		{"[::1]:0", false, true},
		{"localhost:0", true, false},
	} {
		g := mustListen(t, form.address, hash.DefaultConfig(), 3)
		acceptAll(t, g, 0, 3, nil)
		for client, want := range map[string]bool{"127.0.0.1": form.four, "::1": form.six} {
			addr := netip.MustParseAddr(client)
			slot, err := slotOf(t.Context(), addr, netip.AddrPortFrom(addr, uint16(g.Addr().Port)).String())
			if (err == nil) != want {
				t.Errorf("%s: %s: %v", form.address, client, err)
			}
			if right := g.config.Key(addr).Slot(3); err == nil && slot != right {
				t.Errorf("%s: %s came to slot %d, want %d", form.address, client, slot, right)
			}
		}
	}
}

// TestQueue: how many wait, and how many may.
func TestQueue(t *testing.T) {
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
	var want [2]int
	for i := range 20 {
		conn, err := dial(t.Context(), loopback(i), g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		want[g.config.Key(loopback(i)).Slot(2)]++
	}
	b, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	somaxconn, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	for slot := range 2 {
		fdtest.Eventually(t, fmt.Sprintf("%d wait in slot %d of at most %d", want[slot], slot, somaxconn), func() bool {
			waiting, limit, err := g.Queue(slot)
			return waiting == want[slot] && limit == somaxconn && err == nil
		})
	}
}

// TestInUse: another process that listens is found and named, also if it would share the port.
func TestInUse(t *testing.T) {
	earlier := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 3)
	address := earlier.Addr().String()
	orphan := startWorker(t, earlier.Listener(1))
	earlier.Close()

	files := len(fdtest.OpenFiles())
	for _, address := range []string{address, fmt.Sprintf(":%d", earlier.Addr().Port)} {
		g, err := Listen(t.Context(), address, hash.DefaultConfig(), 3)
		if err == nil {
			g.Close()
			t.Fatalf("%s: listens beside an orphan", address)
		}
		pid := strconv.Itoa(orphan.cmd.Process.Pid)
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "pid "+pid) ||
			!strings.Contains(err.Error(), "worker of TestInUse") || !strings.Contains(err.Error(), "kill "+pid) {
			t.Errorf("%s: %v, want pid %s, command and remedy", address, err, pid)
		}
		t.Log(err)
	}
	if n := len(fdtest.OpenFiles()); n != files {
		t.Errorf("%d files are open, %d before", n, files)
	}

	orphan.kill()
	g := mustListen(t, address, hash.DefaultConfig(), 3)
	acceptAll(t, g, 0, 3, nil)
	if _, err := slotOf(t.Context(), loopback(1), address); err != nil {
		t.Error(err)
	}
}

// TestOwners: listeners of overlapping addresses only.
func TestOwners(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "0.0.0.0": true, "::": true, "::ffff:127.0.0.1": true,
		"127.0.0.2": false, "::1": false,
	} {
		owners, err := Owners(netip.AddrPortFrom(netip.MustParseAddr(addr), port))
		if err != nil {
			t.Fatal(err)
		}
		found := slices.ContainsFunc(owners, func(o Owner) bool {
			return o.PID == os.Getpid() && strings.HasPrefix(o.Command, os.Args[0])
		})
		if found != want {
			t.Errorf("owners of %s: %v, want this process %v", addr, owners, want)
		}
	}
}

// TestListenAgain: connections of an earlier run are not in the way, neither closed ones
// (TIME_WAIT) nor those that a worker still serves.
func TestListenAgain(t *testing.T) {
	first := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
	address := first.Addr().String()
	ln, err := net.FileListener(first.Listener(0))
	if err != nil {
		t.Fatal(err)
	}
	var client netip.Addr
	for i := 0; ; i++ {
		if client = loopback(i); first.config.Key(client).Slot(2) == 0 {
			break
		}
	}
	for keep := range 2 {
		conn, err := dial(t.Context(), client, address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		served, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if keep == 1 {
			defer served.Close()
			continue
		}
		served.Close()
		io.ReadAll(conn)
		conn.Close()
	}
	ln.Close()
	first.Close()
	second := mustListen(t, address, hash.DefaultConfig(), 4)
	acceptAll(t, second, 0, 4, nil)
	if _, err := slotOf(t.Context(), client, address); err != nil {
		t.Error(err)
	}
}

// TestTwoMasters: of two that start at once, no two get the port.
func TestTwoMasters(t *testing.T) {
	free := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 1)
	address := free.Addr().String()
	free.Close()
	got := 0
	for range 20 {
		var groups [2]*Group
		var both sync.WaitGroup
		for i := range groups {
			both.Go(func() {
				g, err := Listen(t.Context(), address, hash.DefaultConfig(), 2)
				if err == nil {
					groups[i] = g
				} else if !errors.Is(err, syscall.EADDRINUSE) {
					t.Error(err)
				}
			})
		}
		both.Wait()
		if groups[0] != nil && groups[1] != nil {
			t.Error("both listen")
		}
		for _, g := range groups {
			if g != nil {
				got++
				g.Close()
			}
		}
	}
	if got == 0 {
		t.Error("none ever listened")
	}
	t.Logf("%d of 20 times one got the port", got)
}

// TestStartsWhole: clients that come while the group is being opened come to their slots.
func TestStartsWhole(t *testing.T) {
	for _, loop := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(loop, func(t *testing.T) { testStartsWhole(t, loop) })
	}
}

func testStartsWhole(t *testing.T, loop string) {
	const slots = 64
	enough := int32(500)
	if testing.Short() { // as in a virtual machine, where fewer come within bound
		enough = 50
	}
	free := mustListen(t, loop, hash.DefaultConfig(), 1)
	address := free.Addr().String()
	free.Close()

	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	var clients sync.WaitGroup
	var came, astray atomic.Int32
	for worker := range 8 {
		clients.Go(func() {
			for i := worker; came.Load() < enough && ctx.Err() == nil; i += 8 {
				client := loopback(i)
				if free.Addr().IP.To4() == nil {
					client = netip.IPv6Loopback()
				}
				slot, err := slotOf(ctx, client, address)
				if err != nil {
					continue // refused: nobody listens yet
				}
				came.Add(1)
				if slot != hash.DefaultConfig().Key(client).Slot(slots) {
					astray.Add(1)
				}
			}
		})
	}
	g := mustListen(t, address, hash.DefaultConfig(), slots)
	acceptAll(t, g, 0, slots, nil)
	clients.Wait()
	if came.Load() < enough || astray.Load() > 0 {
		t.Errorf("%d clients came, %d of them astray", came.Load(), astray.Load())
	}
}

// TestResizeUnderLoad: no connection is lost, and afterwards every client is where package
// hash says.
func TestResizeUnderLoad(t *testing.T) {
	config := hash.DefaultConfig()
	g := mustListen(t, "127.0.0.1:0", config, 1)
	if err := resize(g, 8); err != nil {
		t.Fatal(err)
	}
	if err := resize(g, 1); err != nil {
		t.Fatal(err)
	}
	acceptAll(t, g, 0, 8, nil)
	address := g.Addr().String()

	// A client that connects meanwhile is where one of the programs of that time says.
	sizes := []int{1, 2, 3, 8, 3, 8, 7, 1, 8, 4, 5}
	var begun, done, served atomic.Int32 // indexes into sizes
	over := make(chan struct{})
	var load sync.WaitGroup
	for worker := range 4 {
		load.Go(func() {
			for i := worker; ; i += 4 {
				select {
				case <-over:
					return
				default:
				}
				client := loopback(i)
				from := done.Load()
				got, err := slotOf(context.Background(), client, address)
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				if !slices.ContainsFunc(sizes[from:begun.Load()+1], func(slots int) bool {
					return got == config.Key(client).Slot(slots)
				}) {
					t.Errorf("%s came to slot %d, which none of the programs says", client, got)
				}
				served.Add(1)
			}
		})
	}
	before := make(map[int]int) // slot by client
	for round, slots := range sizes {
		begun.Store(int32(round))
		if err := resize(g, slots); err != nil {
			t.Error(err)
		}
		done.Store(int32(round))
		moved := 0
		for i := range 60 {
			client := loopback(i)
			got, err := slotOf(t.Context(), client, address)
			if err != nil {
				t.Error(err)
			}
			if want := config.Key(client).Slot(slots); got != want {
				t.Errorf("of %d slots client %s came to %d, want %d", slots, client, got, want)
			}
			if got != before[i] {
				moved++
			}
			before[i] = got
		}
		t.Logf("round %d: to %d slots: %d of 60 moved", round, slots, moved)
	}
	close(over)
	load.Wait()
	t.Logf("%d connections served meanwhile", served.Load())
}

// TestShrinkKeepsWhatWaits: the queue of a slot that is not in use any more can be served, and
// the slot has the same listener when it comes back.
func TestShrinkKeepsWhatWaits(t *testing.T) {
	config := hash.DefaultConfig()
	g := mustListen(t, "127.0.0.1:0", config, 4)
	var waiting []*net.TCPConn
	for i := 0; len(waiting) < 20; i++ {
		if config.Key(loopback(i)).Slot(4) != 3 {
			continue
		}
		conn, err := dial(t.Context(), loopback(i), g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		waiting = append(waiting, conn)
	}
	file := g.Listener(3)
	if err := resize(g, 2); err != nil {
		t.Fatal(err)
	}
	acceptAll(t, g, 3, 4, nil)
	for _, conn := range waiting {
		if slot := -1; !scan(conn, &slot) || slot != 3 {
			t.Fatalf("a connection that waited in slot 3 is served by %d", slot)
		}
	}
	if err := resize(g, 4); err != nil {
		t.Fatal(err)
	}
	if g.Listener(3) != file {
		t.Error("slot 3 has another listener")
	}
}

// TestShared: two processes accept from a slot, one stops, the other goes on.
func TestShared(t *testing.T) {
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 1)
	address := g.Addr().String()
	first, second := startWorker(t, g.Listener(0)), startWorker(t, g.Listener(0))
	first.do("accept")
	second.do("accept")
	pids := make(map[int]int)
	fdtest.Eventually(t, "both accept", func() bool {
		pid, err := slotOf(t.Context(), loopback(1), address)
		if err != nil {
			t.Fatal(err)
		}
		pids[pid]++
		return len(pids) == 2
	})
	first.do("close")
	for range 50 {
		pid, err := slotOf(t.Context(), loopback(1), address)
		if err != nil || pid != second.cmd.Process.Pid {
			t.Fatalf("served by %d (%v), want %d", pid, err, second.cmd.Process.Pid)
		}
	}
}

// TestSuccessor: what waits for a worker that is killed waits for the next.
func TestSuccessor(t *testing.T) {
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 1)
	first := startWorker(t, g.Listener(0))
	var waiting []*net.TCPConn
	for i := range 200 {
		if i == 100 {
			first.kill()
		}
		conn, err := dial(t.Context(), loopback(i), g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		waiting = append(waiting, conn)
	}
	second := startWorker(t, g.Listener(0))
	second.do("accept")
	for _, conn := range waiting {
		if pid := 0; !scan(conn, &pid) || pid != second.cmd.Process.Pid {
			t.Fatalf("served by %d, want %d", pid, second.cmd.Process.Pid)
		}
	}
}

// TestRepair: a worker shuts its listener down, which leads the clients of other slots astray.
// They find back.
func TestRepair(t *testing.T) {
	const slots = 5
	config := hash.DefaultConfig()
	for _, shut := range [][]int{{1}, {4}, {0}, {2, 0, 2, 3, 0}} {
		t.Run(fmt.Sprint(shut), func(t *testing.T) {
			g := mustListen(t, "127.0.0.1:0", config, slots) // of port 0: see listenAgain
			if found, err := g.Repair(); err != nil || found.Shut != nil || found.Filtered != nil || found.Locked != nil || found.Joined != nil {
				t.Fatalf("found %v (%v) where nothing is broken", found, err)
			}
			for _, slot := range shut {
				worker := startWorker(t, g.Listener(slot))
				worker.do("shut")
				if _, _, err := g.Queue(slot); !errors.Is(err, ErrNotListening) {
					t.Errorf("slot %d was shut down: %v", slot, err)
				}
				found, err := g.Repair()
				if err != nil || !slices.Equal(found.Shut, []int{slot}) {
					t.Fatalf("repaired %v (%v), want %d", found, err, slot)
				}
			}
			if err := resize(g, slots+1); err != nil {
				t.Fatal(err)
			}
			acceptAll(t, g, 0, slots+1, nil)
			for i := range 200 {
				client := loopback(i)
				got, err := slotOf(t.Context(), client, g.Addr().String())
				if want := config.Key(client).Slot(slots + 1); err != nil || got != want {
					t.Fatalf("%s came to slot %d (%v), want %d", client, got, err, want)
				}
			}
		})
	}
}

// TestRepairSeveral: then the places of the others are not known, and that is said.
func TestRepairSeveral(t *testing.T) {
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 4)
	for _, slot := range []int{2, 1} {
		startWorker(t, g.Listener(slot)).do("shut")
	}
	found, err := g.Repair()
	if err == nil || !slices.Equal(found.Shut, []int{1, 2}) {
		t.Errorf("repaired %v (%v), want 1 and 2 and an error", found, err)
	}
}

// TestSwapDuringHandshake: a client whose slot changes between its first packet and its second
// comes to the slot that the first one chose. With SYN cookies, where nothing is kept of the
// first, to the other. It is not lost.
func TestSwapDuringHandshake(t *testing.T) {
	if !inNetwork(t) {
		return
	}
	for _, cookies := range []bool{false, true} {
		t.Run(fmt.Sprintf("cookies=%v", cookies), func(t *testing.T) {
			if cookies {
				setSysctl(t, "/proc/sys/net/ipv4/tcp_syncookies", "2")
			}
			config := hash.DefaultConfig()
			g := mustListen(t, "127.0.0.1:0", config, 2)
			acceptAll(t, g, 0, 2, nil)
			var client netip.Addr
			for i := 0; ; i++ {
				if client = loopback(i); config.Key(client).Slot(2) == 1 {
					break
				}
			}
			drop := func(fd int) error { return setProgram(fd, unix.SO_ATTACH_FILTER, onlySYNs) }
			if err := control(g.Listener(1), drop); err != nil {
				t.Fatal(err)
			}
			conn, err := dial(t.Context(), client, g.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := resize(g, 1); err != nil {
				t.Fatal(err)
			}
			err = control(g.Listener(1), func(fd int) error {
				return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
			})
			if err != nil {
				t.Fatal(err)
			}
			want := 1
			if cookies {
				want = 0
			}
			io.WriteString(conn, "hello\n")
			if slot := -1; !scan(conn, &slot) || slot != want {
				t.Errorf("came to slot %d, want %d", slot, want)
			}
		})
	}
}

// onlySYNs is a socket's filter, which sees packets from the TCP header on: ACKs are lost.
var onlySYNs = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 13, Size: 1},
	bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x10},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: 0xffffffff},
}

func scan(conn net.Conn, number *int) bool {
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return false
	}
	*number, err = strconv.Atoi(strings.TrimSpace(line))
	return err == nil
}

// TestClosed: what a closed group says.
func TestClosed(t *testing.T) {
	fdtest.NoLeaks(t)
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 8)
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if err := resize(g, 3); !errors.Is(err, os.ErrClosed) {
		t.Errorf("resize: %v", err)
	}
	if _, _, err := g.Queue(1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("queue: %v", err)
	}
}

// TestStopHandshakes: clients that are connected, or about to be, come to their slots; first packets are lost.
func TestStopHandshakes(t *testing.T) {
	fdtest.NoLeaks(t)
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
	before, err := dial(t.Context(), loopback(0), g.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	for range 2 { // again is no error
		if err := g.StopHandshakes(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if conn, err := dial(ctx, loopback(i), g.Addr().String()); err == nil {
			conn.Close()
			t.Errorf("client %d connects", i)
		} else if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
			t.Errorf("client %d is told: %v", i, err)
		}
		cancel()
	}
	slot := hash.DefaultConfig().Key(loopback(0)).Slot(2)
	if n, _, err := g.Queue(slot); n != 1 || err != nil {
		t.Errorf("%d wait in slot %d (%v), want the one who was connected", n, slot, err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}
