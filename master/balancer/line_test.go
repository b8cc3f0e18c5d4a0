package balancer

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/reexec"
)

// BenchmarkRoute finds clients by their address, places them, and groups batches by slot; per
// connection.
func BenchmarkRoute(b *testing.B) {
	for _, slots := range []int{2, 16, 64} {
		b.Run(fmt.Sprintf("slots=%d", slots), func(b *testing.B) {
			balancer, r, batch := straight(b, slots)
			b.ReportAllocs()
			n := 0
			reexec.Lock.RLock()
			defer reexec.Lock.RUnlock()
			for b.Loop() {
				r.route(balancer.identify(batch, nil))
				n += len(batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/conn")
		})
	}
}

// BenchmarkOwner looks up the worker that keeps a session.
func BenchmarkOwner(b *testing.B) {
	const sessions = 10_000
	var s Sessions
	ids := make([]clientip.Session, sessions)
	for i := range ids {
		ids[i] = clientip.NameSession(fmt.Sprint("session-", i))
		s.Claim(ids[i], new(sink), 0)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if s.Owner(ids[i%sessions]) == nil {
			b.Fatal("nobody keeps it")
		}
	}
}

// BenchmarkLine is the whole straight line: a batch of clients lies in the backlog, and in
// the end in mailboxes, from which nobody waits for it. Its time is what the thread used, and for
// one connection; the clients and the workers are not in it.
func BenchmarkLine(b *testing.B) {
	for _, of := range []struct{ slots, batch int }{{2, 1}, {2, 8}, {2, fdpass.MaxBatch}, {64, 8}, {64, fdpass.MaxBatch}} {
		b.Run(fmt.Sprintf("slots=%d/batch=%d", of.slots, of.batch), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			l := newLine(b, of.slots, byAddress)
			var used time.Duration
			n := 0
			for b.Loop() {
				l.connect(of.batch)
				start := threadTime()
				l.pass()
				used += threadTime() - start
				n += of.batch
				l.disconnect(of.batch)
			}
			b.ReportMetric(float64(used)/float64(n), "cpu-ns/conn")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// line is an acceptor with mailboxes at its end, and clients.
type line struct {
	*acceptor
	t         testing.TB
	control   func(listener uintptr)
	listener  unix.SockaddrInet4
	clients   []int
	mailboxes []*fdpass.Conn
	message   fdpass.Message
}

func newLine(t testing.TB, slots int, change func(*Config)) *line {
	table := NewTable(slots)
	l := &line{t: t}
	for slot := range slots {
		m, err := mailbox.Open(nil, mailbox.Requests{}, fdpass.CloseHandoffs)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		fd, err := sock.Duplicate(m.Files()[0])
		if err != nil {
			t.Fatal(err)
		}
		worker, err := fdpass.NewConn(os.NewFile(uintptr(fd), "worker"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { worker.Close() })
		l.mailboxes = append(l.mailboxes, worker)
		table.Fill(slot, m)
	}
	cfg := DefaultConfig()
	change(&cfg)
	b, err := New(cfg, table)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddrPort(ln.Addr().String())
	l.listener = unix.SockaddrInet4{Addr: address.Addr().As4(), Port: int(address.Port())}
	if l.acceptor, err = newAcceptor(b, ln); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.file.Close() })
	l.control = func(listener uintptr) { l.take(listener) }
	return l
}

// byAddress leaves the configuration as it is: clients are known by their address.
func byAddress(*Config) {}

// pass takes what is in the backlog, up to a batch, and delivers it.
func (l *line) pass() {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	l.raw.Control(l.control)
	l.flush()
}

// connect opens n clients with an address each, up to 256.
func (l *line) connect(n int) {
	for i := range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			l.t.Fatal(err)
		}
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(i)}})
		if err := unix.Connect(fd, &l.listener); err != nil {
			l.t.Fatal(err)
		}
		l.clients = append(l.clients, fd)
	}
}

// disconnect ends n clients, all that there are, at both ends.
func (l *line) disconnect(n int) {
	for _, fd := range l.clients {
		unix.Close(fd)
	}
	l.clients = l.clients[:0]
	for _, worker := range l.mailboxes { // blocking: not in Go's poller
		for worker.Next() == fdpass.TypeHandoff {
			if err := worker.Receive(&l.message); err != nil {
				l.t.Fatal(err)
			}
			fdpass.CloseHandoffs(l.message.Handoffs)
			n -= len(l.message.Handoffs)
		}
	}
	if n != 0 {
		l.t.Fatalf("%d connections did not arrive", n)
	}
}

// threadTime is what this thread has used of its processor.
func threadTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}
