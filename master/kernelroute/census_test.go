package kernelroute

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/sockdiag"
)

// countsIn has the census of a world see its sockets, and returns how often it has looked.
func countsIn(w *world, failed *error) (looks *int) {
	looks = new(int)
	w.census.each = func(port uint16, visit func(*sockdiag.Socket), states ...sockdiag.State) error {
		*looks++
		for _, s := range w.sockets {
			if s.Local.Port() == port && slices.Contains(states, s.State) {
				visit(&s)
			}
		}
		return *failed
	}
	return looks
}

// TestOpen counts what workers have accepted of our addresses, by slot; a look serves all who ask within a second.
func TestOpen(t *testing.T) {
	inWorld(t, taking, 2, func(w *world) {
		var failed error
		looks := countsIn(w, &failed)
		zero, one := clientOf(w.hash, 0, 2), clientOf(w.hash, 1, 2)
		add := func(client netip.Addr, to string, state sockdiag.State, inode uint64) {
			w.sockets = append(w.sockets, sockdiag.Socket{State: state, Family: unix.AF_INET, Inode: inode,
				Local: netip.MustParseAddrPort(to), Remote: netip.AddrPortFrom(client, uint16(1000+len(w.sockets)))})
		}
		const here, elsewhere = "10.0.0.99:80", "10.0.0.98:80"
		for range 3 {
			add(zero, here, sockdiag.Established, 7)
		}
		add(one, here, sockdiag.CloseWait, 8)
		add(one, here, sockdiag.FinWait2, 9)     // the worker has closed its half
		add(one, here, sockdiag.FinWait2, 0)     // and here all
		add(zero, here, sockdiag.Established, 0) // waits to be accepted
		add(one, elsewhere, sockdiag.Established, 10)
		for range 5 {
			if got := w.Open(); !slices.Equal(got, []int{3, 2}) {
				t.Fatalf("open: %v, want 3 and 2", got)
			}
		}
		if *looks != 1 {
			t.Errorf("%d looks within a second", *looks)
		}
		time.Sleep(censusLook + 1)
		w.sockets = w.sockets[1:]
		if got := w.Open(); !slices.Equal(got, []int{2, 2}) {
			t.Errorf("after a second: %v, want 2 and 2", got)
		}
		w.census.took = time.Minute // as on a machine that has very many
		time.Sleep(censusShare*time.Minute - time.Second)
		if w.Open(); *looks != 2 {
			t.Error("looks again although looking takes so long")
		}
		time.Sleep(2 * time.Second)
		failed = errors.New("a sandbox")
		if got := w.Open(); got != nil || *looks != 3 {
			t.Errorf("open: %v, after %d looks; want that nobody knows", got, *looks)
		}
	})
}

// TestOpenOfSlotAddresses: what came to a slot's own address is that slot's, whoever the client is.
func TestOpenOfSlotAddresses(t *testing.T) {
	inWorld(t, taking, 2, func(w *world) {
		var failed error
		countsIn(w, &failed)
		w.hash.Slots, _ = hash.ParseSlotAddresses("10.0.0.98/31") // 98 and 99
		for i, local := range []string{"10.0.0.99:80", "10.0.0.99:80", "10.0.0.99:80"} {
			w.sockets = append(w.sockets, sockdiag.Socket{State: sockdiag.Established, Family: unix.AF_INET, Inode: 1,
				Local: netip.MustParseAddrPort(local), Remote: netip.AddrPortFrom(clientOf(w.hash, 0, 2), uint16(i))})
		}
		if got := w.Open(); !slices.Equal(got, []int{0, 3}) {
			t.Errorf("open: %v, want all three in slot 1", got)
		}
		w.Sample()
		if !slices.Equal(w.told, []int{0}) {
			t.Errorf("told of %v clients, though their slot is no choice of theirs", w.told)
		}
	})
}

// TestSample: every few seconds the balancer is told whose connections are open.
func TestSample(t *testing.T) {
	inWorld(t, taking, 2, func(w *world) {
		var failed error
		looks := countsIn(w, &failed)
		comes := func(n int) {
			for range n {
				w.sockets = append(w.sockets, sockdiag.Socket{State: sockdiag.Established, Family: unix.AF_INET, Inode: 1,
					Local: netip.MustParseAddrPort("10.0.0.99:80"), Remote: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(len(w.sockets)))})
			}
		}
		comes(10)
		w.Sample()
		w.Sample() // too soon
		comes(2)
		time.Sleep(censusSample)
		w.Sample()
		if want := []int{10, 12}; !slices.Equal(w.told, want) {
			t.Errorf("told of %v clients, want %v", w.told, want)
		}
		w.census.took = time.Minute
		time.Sleep(sampleShare*time.Minute - time.Second)
		if w.Sample(); *looks != 2 {
			t.Errorf("%d looks, although looking takes so long", *looks)
		}
	})
}

// TestOpenInTheKernel: real connections, by both families, of which some wait and some are half-closed.
func TestOpenInTheKernel(t *testing.T) {
	s := newStageAt(t, ":0", taking, 2, time.Hour, 1)
	port := strconv.Itoa(s.groups[0].Addr().Port)
	s.start("a", 0, true)
	s.start("b", 1, true)
	s.fill("a")
	s.fill("b")
	want := make([]int, 2)
	for i := range 8 {
		host := "127.0.0.1"
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i))}}
		if i == 7 {
			host, d.LocalAddr = "::1", nil
		}
		conn, err := d.Dial("tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		slot := s.slotOf(netip.MustParseAddr(host), conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr())
		if i%4 == 3 {
			continue // which nobody accepts
		}
		ln, err := net.FileListener(s.groups[0].Listener(slot))
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := ln.Accept()
		ln.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if want[slot]++; i == 5 {
			accepted.(*net.TCPConn).CloseWrite()
		}
	}
	if got := s.Open(); !slices.Equal(got, want) {
		t.Errorf("open: %v, want %v", got, want)
	}
}

// BenchmarkOpen is a look at HANDFAST_BENCH_CONNECTIONS connections (1000), as a scrape may cause once a second: their clients are of
// 100 addresses.
func BenchmarkOpen(b *testing.B) {
	n, err := strconv.Atoi(os.Getenv("HANDFAST_BENCH_CONNECTIONS"))
	if err != nil {
		n = 1000
	}
	g, err := reuseport.Listen(b.Context(), "127.0.0.1:0", hash.DefaultConfig(), 4)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	r := newRoute(taking, balancer.DefaultConfig(), []Group{kernelGroup{g}})
	for left := n; left > 0; left -= holdMost {
		hold(b, g, min(left, holdMost))
	}
	b.ReportAllocs()
	cpu := processTime()
	for b.Loop() {
		r.census.at = time.Time{}
		sum := 0
		for _, of := range r.Open() {
			sum += of
		}
		if sum != n {
			b.Fatalf("%d connections, want %d", sum, n)
		}
	}
	b.ReportMetric(float64((processTime()-cpu).Microseconds())/float64(b.N), "cpu-µs/op")
}

const (
	// holdMost is how many connections a process may hold both ends of.
	holdMost = 8000
	// holdRole has a test process hold so many connections: the number, and a port.
	holdRole = "HANDFAST_TEST_HOLD"
)

// hold has a process of its own hold both ends of connections, until the end.
func hold(b *testing.B, g *reuseport.Group, n int) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHold$", "-test.v")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", holdRole, n, g.Addr().Port))
	for i := range g.Members() {
		cmd.ExtraFiles = append(cmd.ExtraFiles, g.Listener(i))
	}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "held" {
			go io.Copy(io.Discard, out)
			return
		}
	}
	b.Fatal("the process that holds connections has ended")
}

// TestHold is no test, but the process that hold starts.
func TestHold(t *testing.T) {
	var n, port int
	if fmt.Sscan(os.Getenv(holdRole), &n, &port); n == 0 {
		t.Skip("it is started by BenchmarkOpen")
	}
	var listeners []net.Listener
	for i := range 4 {
		ln, err := net.FileListener(os.NewFile(uintptr(3+i), "listener"))
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, ln)
	}
	to := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	for i := range n {
		client := [4]byte{127, 1, 0, byte(1 + i%100)}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: client}), unix.Connect(fd, to)); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if _, err := listeners[hash.DefaultConfig().Key(netip.AddrFrom4(client)).Slot(4)].Accept(); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("\nheld")
	io.Copy(io.Discard, os.Stdin)
}

func processTime() time.Duration {
	var used unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &used)
	at := func(t syscall.Timeval) time.Duration { return time.Duration(t.Nano()) }
	return at(syscall.Timeval(used.Utime)) + at(syscall.Timeval(used.Stime))
}
