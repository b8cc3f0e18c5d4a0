package acceptinject

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/foreigntest"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/supervisor"
)

// router is what a balancer is for these links: it accepts, and hands each client to its slot, as
// often as is needed.
type router struct {
	t      testing.TB
	fd     int
	mu     sync.Mutex
	slots  [foreigntest.Slots]*Link
	ended  chan struct{}
	busy   sync.WaitGroup
	routed int
	back   int
}

// play starts a server in each slot, and waits until all are ready.
func play(t *testing.T, s *foreigntest.Server) *foreigntest.Stage {
	t.Helper()
	fdtest.NeedLinux(t, 5, 19)
	r := &router{t: t, fd: foreigntest.Socket(t, unix.AF_INET), ended: make(chan struct{})}
	fdtest.Check(t, unix.Bind(r.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	fdtest.Check(t, unix.Listen(r.fd, 1000))
	name, err := unix.Getsockname(r.fd)
	fdtest.Check(t, err)
	port := name.(*unix.SockaddrInet4).Port
	r.busy.Go(r.run)
	t.Cleanup(func() {
		close(r.ended)
		unix.Shutdown(r.fd, unix.SHUT_RDWR)
		r.busy.Wait()
		unix.Close(r.fd)
		t.Logf("%d connections, %d given back", r.routed, r.back)
	})
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
	return foreigntest.Begin(t, s, port, func(cfg *supervisor.Config) {
		cfg.Slots = r
		cfg.NewLink = func(seat supervisor.Seat) (supervisor.Link, error) {
			return Open(Config{Addresses: []netip.AddrPort{at}, Readmit: r.readmit,
				Drain: launch.Drain{Signal: s.Drain}, Logger: cfg.Logger})
		}
	})
}

func (r *router) Resize(int) {}

func (r *router) Fill(slot int, l supervisor.Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots[slot] = l.(*Link)
}

func (r *router) Empty(slot int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots[slot] = nil
}

func (r *router) run() {
	for {
		fd, peer, err := unix.Accept4(r.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		from := peer.(*unix.SockaddrInet4)
		r.routed++
		r.route(fdpass.Handoff{FD: fd, Client: netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port))})
	}
}

func (r *router) readmit(conns []fdpass.Handoff) {
	r.mu.Lock()
	r.back += len(conns)
	r.mu.Unlock()
	for _, conn := range conns {
		r.route(conn)
	}
}

// route hands a connection over, now or later.
func (r *router) route(conn fdpass.Handoff) {
	if r.offer(conn) {
		return
	}
	r.busy.Add(1)
	go func() {
		defer r.busy.Done()
		for !r.offer(conn) {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-r.ended:
				unix.Close(conn.FD)
				return
			}
		}
	}()
}

func (r *router) offer(conn fdpass.Handoff) bool {
	last := conn.Client.Addr().As4()[3]
	r.mu.Lock()
	l := r.slots[last%foreigntest.Slots]
	r.mu.Unlock()
	if l == nil {
		return false
	}
	n, _ := l.Deliver([]fdpass.Handoff{conn})
	return n == 1
}
