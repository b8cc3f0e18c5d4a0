package balancer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/reexec"
)

const testPatience = fdtest.Patience

// fakeWorker takes at most room connections and answers each with its name. It
// stands for what sticky-listen calls an active worker: anything that takes
// connections.
type fakeWorker struct {
	name string
	mu   sync.Mutex
	room int
	got  []fdpass.Handoff
}

func (w *fakeWorker) Deliver(conns []fdpass.Handoff) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(conns), w.room)
	w.room -= n
	w.got = append(w.got, conns[:n]...)
	for _, h := range conns[:n] {
		unix.Write(h.FD, []byte(w.name))
		unix.Close(h.FD)
	}
	if n < len(conns) {
		return n, fdpass.ErrFull
	}
	return n, nil
}

func busyWorker(name string) *fakeWorker { return &fakeWorker{name: name, room: 1 << 30} }

// bySource is a Strategy that a user could write: the client's last byte.
type bySource struct{}

func (bySource) Slot(client clientip.Client, slots, rank int) int {
	return (int(client.Addr.As4()[3]) + rank) % slots
}

// serveTest serves a table until the test ends, and then checks that no goroutine
// and no descriptor is left.
func serveTest(t *testing.T, table *Table, change func(*Config)) (b *Balancer, dial func(last byte) net.Conn, stop func()) {
	t.Helper()
	fdtest.NoLeaks(t)
	cfg := DefaultConfig()
	cfg.Strategy = bySource{}
	if change != nil {
		change(&cfg)
	}
	b, err := New(cfg, table)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- b.Serve(ctx, ln) }()
	var clients []net.Conn
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
			b.Shutdown(ctx)
		})
	}
	t.Cleanup(func() {
		stop()
		for _, c := range clients {
			c.Close()
		}
	})
	dial = func(last byte) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, last)}}
		conn, err := d.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(testPatience))
		clients = append(clients, conn)
		return conn
	}
	return b, dial, stop
}

// reads fails unless the connection carries want and then ends. It closes it, for which a refusal waits.
func reads(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got, err := io.ReadAll(conn)
	conn.Close()
	if err != nil || !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
		t.Errorf("client %v reads %q, %v, want %q", conn.LocalAddr(), got, err, want)
	}
}

// TestLibrary: without our supervisor, somebody else's workers in a table, placed by
// somebody else's strategy.
func TestLibrary(t *testing.T) {
	table := NewTable(3)
	workers := []*fakeWorker{busyWorker("zero"), busyWorker("one"), busyWorker("two")}
	for slot, w := range workers {
		table.Fill(slot, w)
	}
	b, dial, _ := serveTest(t, table, nil)
	for last := byte(3); last < 33; last++ {
		reads(t, dial(last), workers[last%3].name)
	}
	if want := (Stats{Accepted: 30, HandedOff: 30}); !fdtest.Poll(func() bool { return b.Stats() == want }) {
		t.Errorf("%+v, want %+v", b.Stats(), want)
	}
	if client := workers[0].got[0].Client; client.Addr() != netip.MustParseAddr("127.0.0.3") || client.Port() == 0 {
		t.Errorf("the first client of slot 0 is %v", client)
	}
}

// TestFilledSlotTakesParkedAtOnce: not only at the next try.
func TestFilledSlotTakesParkedAtOnce(t *testing.T) {
	table := NewTable(2)
	b, dial, _ := serveTest(t, table, func(c *Config) { c.RetryDelay = 20 * time.Minute })
	clients := []net.Conn{dial(2), dial(4), dial(6)}
	if !fdtest.Poll(func() bool { return b.Stats().Parked == len(clients) }) {
		t.Fatalf("%+v", b.Stats())
	}
	table.Fill(0, busyWorker("late"))
	for _, c := range clients {
		reads(t, c, "late")
	}
}

// TestParkedFollowSlots: a connection that waits for a slot that is removed goes where it belongs
// then.
func TestParkedFollowSlots(t *testing.T) {
	table := NewTable(2)
	b, dial, _ := serveTest(t, table, func(c *Config) { c.RetryDelay = 20 * time.Minute })
	client := dial(3)
	if !fdtest.Poll(func() bool { return b.Stats().Parked == 1 }) {
		t.Fatalf("%+v", b.Stats())
	}
	table.Fill(0, busyWorker("zero"))
	table.Resize(1)
	reads(t, client, "zero")
}

// TestFullMailbox: what a worker does not take is tried again, and order is kept
// for what it takes.
func TestFullMailbox(t *testing.T) {
	table := NewTable(1)
	w := &fakeWorker{name: "w", room: 1}
	table.Fill(0, w)
	b, dial, _ := serveTest(t, table, func(c *Config) { c.RetryDelay = time.Millisecond; c.MaxRetries = 1 << 20 })
	reads(t, dial(1), "w")
	waiting := []net.Conn{dial(2), dial(3), dial(4)}
	if !fdtest.Poll(func() bool { return b.Stats().Parked == 3 }) {
		t.Fatalf("%+v", b.Stats())
	}
	w.mu.Lock()
	w.room = 3
	w.mu.Unlock()
	for _, c := range waiting {
		reads(t, c, "w")
	}
}

// TestBacklogIsServed: connections that the kernel accepted before the balancer was
// told to stop.
func TestBacklogIsServed(t *testing.T) {
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for range 200 { // more than one batch
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(testPatience))
		clients = append(clients, conn)
	}
	table := NewTable(1)
	table.Fill(0, busyWorker("w"))
	b, err := New(DefaultConfig(), table)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Serve(ctx, ln); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		reads(t, c, "w")
	}
}

// TestShutdownHurries: when its context ends, what is parked is refused, and so is
// all that comes back later.
func TestShutdownHurries(t *testing.T) {
	b, dial, stop := serveTest(t, NewTable(1), func(c *Config) { c.RetryDelay = 20 * time.Minute })
	client := dial(2)
	if !fdtest.Poll(func() bool { return b.Stats().Parked == 1 }) {
		t.Fatalf("%+v", b.Stats())
	}
	go stop()
	reads(t, client, "HTTP/1.1 502 ")
	client.Close()
	stop()

	ours, theirs := fdtest.TCPPair(t)
	readmit(b, []fdpass.Handoff{{FD: fdtest.Duplicate(t, theirs), Client: netip.MustParseAddrPort("127.0.0.1:1")}})
	theirs.Close()
	reads(t, ours, "HTTP/1.1 502 ")
	if s := b.Stats(); s.TakenBack != 1 || s.Refused != 2 {
		t.Errorf("%+v", s)
	}
	ours.Close()
	b.Shutdown(context.Background())
}

// TestResetWhileParked: nothing of a client that resets while it waits is kept once
// its patience is over (sticky-listen's master died of it).
func TestResetWhileParked(t *testing.T) {
	b, dial, _ := serveTest(t, NewTable(1), func(c *Config) { c.RetryDelay = time.Millisecond; c.MaxRetries = 20 })
	for i := range 50 {
		conn := dial(byte(1 + i)).(*net.TCPConn)
		if i%2 == 0 {
			conn.Write([]byte("GET / HTTP/1.1\r\n"))
		}
		conn.SetLinger(0)
		conn.Close()
	}
	if !fdtest.Poll(func() bool { s := b.Stats(); return s.Refused == 50 && s.Parked == 0 }) {
		t.Errorf("%+v", b.Stats())
	}
}

// TestRefusalsAreLimited: the first few at once, then at most one a second with
// the number that was left out. Row B4.
func TestRefusalsAreLimited(t *testing.T) {
	var out bytes.Buffer
	log := hclog.New(&hclog.LoggerOptions{Output: &out, JSONFormat: true, Mutex: new(sync.Mutex)})
	b, dial, stop := serveTest(t, NewTable(1), func(c *Config) { c.MaxRetries = 0; c.Logger = log })
	for i := range 20 {
		reads(t, dial(byte(1+i)), "HTTP/1.1 502 ")
	}
	stop()
	if n := strings.Count(out.String(), "connection refused"); n < logging.Few.Burst || n > logging.Few.Burst+3 {
		t.Errorf("%d lines for %d refusals:\n%s", n, b.Stats().Refused, &out)
	}
	for _, want := range []string{`"peer":"127.0.0.1:`, `"client":"127.0.0.1"`, `"slot":0`, `"reason":"slot empty"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, &out)
		}
	}
}

// TestServeNeedsTCP: what cannot be handed off is not served.
func TestServeNeedsTCP(t *testing.T) {
	ln, err := net.Listen("unix", t.TempDir()+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(DefaultConfig(), NewTable(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(t.Context(), ln); err == nil || !strings.Contains(err.Error(), "TCPListener") {
		t.Error(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error("Serve did not take ownership of the listener")
	}
}

func TestConfig(t *testing.T) {
	for _, spoil := range []func(*Config){
		func(c *Config) { c.Strategy = nil },
		func(c *Config) { c.RetryDelay = 0 },
		func(c *Config) { c.MaxRetries = -1 },
		func(c *Config) { c.MaxParked = -1 },
	} {
		cfg := DefaultConfig()
		spoil(&cfg)
		if _, err := New(cfg, NewTable(1)); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

// TestInheritedOptions: connections have what a server sets on its own (man 7 tcp:
// options of the listener are inherited).
func TestInheritedOptions(t *testing.T) {
	// A listener of somebody else, such as systemd, which sets nothing.
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false)
	ln, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(DefaultConfig(), NewTable(1))
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAcceptor(b, ln)
	if err != nil {
		t.Fatal(err)
	}
	defer a.file.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a.raw.Read(func(fd uintptr) bool {
		accepted, _, err := unix.Accept4(int(fd), unix.SOCK_CLOEXEC)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			t.Error(err)
			return true
		}
		defer unix.Close(accepted)
		for _, o := range []struct{ level, option, want int }{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
			{unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
		} {
			if got, err := unix.GetsockoptInt(accepted, o.level, o.option); got != o.want {
				t.Errorf("option %d of level %d is %d, %v, want %d", o.option, o.level, got, err, o.want)
			}
		}
		return true
	})
}

func TestTable(t *testing.T) {
	table := NewTable(2)
	a, z := busyWorker("a"), busyWorker("z")
	table.Fill(1, a)
	before := table.load()
	table.Fill(1, z)
	select {
	case <-before[1].changed:
	default:
		t.Error("who saw the old worker is not told of the new one")
	}
	if before[1].worker != a || table.load()[1].worker != z {
		t.Error("a snapshot has changed")
	}
	table.Empty(1)
	empty := table.load()[1]
	table.Resize(1)
	select {
	case <-empty.changed:
	default:
		t.Error("who waits for a removed slot is not told")
	}
	table.Resize(3)
	if table.Len() != 3 || table.load()[1].worker != nil {
		t.Errorf("%d slots, slot 1 holds %v", table.Len(), table.load()[1].worker)
	}
	for _, n := range []int{0, -1, hash.MaxSlots + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a table of %d slots", n)
				}
			}()
			table.Resize(n)
		}()
	}
}

// readmit gives connections back as a link does.
func readmit(b *Balancer, conns []fdpass.Handoff) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	b.Readmit(conns)
}
