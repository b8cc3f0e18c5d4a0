package balancer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
)

// keeper is a worker that keeps what it is handed.
type keeper struct {
	got           chan fdpass.Handoff
	looks, drains atomic.Bool
}

func newKeeper() *keeper {
	k := &keeper{got: make(chan fdpass.Handoff, 100)}
	k.looks.Store(true)
	return k
}

func (k *keeper) Deliver(conns []fdpass.Handoff) (int, error) {
	for _, h := range conns {
		k.got <- h
	}
	return len(conns), nil
}

func (k *keeper) Looks() bool  { return k.looks.Load() }
func (k *keeper) Drains() bool { return k.drains.Load() }

func (k *keeper) next(t *testing.T) fdpass.Handoff {
	t.Helper()
	return fdtest.Receive(t, "connection", k.got)
}

func handBack(b *Balancer, slot int, from Returner, conns ...fdpass.Handoff) (int, error) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	return b.HandBack(slot, from, conns)
}

// headOf is a request of the client with this last byte.
func headOf(last int) string {
	return fmt.Sprintf("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.%d\r\n\r\n", last)
}

// pooled serves two keepers behind a proxy, whose connection the first of them has. Clients are in the slot of their last bit.
func pooled(t *testing.T, change func(*Config)) (b *Balancer, workers [2]*keeper, proxy net.Conn, h fdpass.Handoff) {
	t.Helper()
	table := NewTable(2)
	b, dial, stop := serveTest(t, table, func(c *Config) {
		behindProxy(c)
		c.RetryDelay = time.Millisecond
		if change != nil {
			change(c)
		}
	})
	for i := range workers {
		workers[i] = newKeeper()
		table.Fill(i, workers[i])
	}
	proxy = dial(1)
	io.WriteString(proxy, headOf(2))
	h = workers[0].next(t)
	t.Cleanup(func() { // before serveTest looks for leaks
		stop()
		for _, w := range workers {
			for len(w.got) > 0 {
				unix.Close((<-w.got).FD)
			}
		}
	})
	take(t, h, headOf(2))
	return b, workers, proxy, h
}

// take reads what is there, and fails unless it is want.
func take(t *testing.T, h fdpass.Handoff, want string) {
	t.Helper()
	got := make([]byte, 1000)
	n, err := unix.Read(h.FD, got)
	if err != nil || string(got[:n]) != want {
		t.Errorf("read %q, %v, want %q", got[:max(n, 0)], err, want)
	}
}

// arrive waits until something has arrived.
func arrive(t *testing.T, h fdpass.Handoff, text string) {
	t.Helper()
	fdtest.Eventually(t, "bytes", func() bool {
		n, _, _ := unix.Recvfrom(h.FD, make([]byte, 1000), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return n == len(text)
	})
}

// TestHandBack: a connection is placed anew by the head of its next request, of which nothing is read, with all that is known
// of it, and its client is who the master sees.
func TestHandBack(t *testing.T) {
	b, workers, proxy, h := pooled(t, nil)
	defer func() { unix.Close(h.FD) }()
	io.WriteString(proxy, headOf(3))
	arrive(t, h, headOf(3))
	unix.SetNonblock(h.FD, false)
	back := h
	back.Client, back.Flags, back.Details = netip.MustParseAddrPort("192.0.2.1:1"), fdpass.FlagUnplaced|fdpass.FlagProxied, "mine"
	if n, err := handBack(b, 0, workers[0], back); n != 1 || err != nil {
		t.Fatalf("handed back %d, %v", n, err)
	}
	if got := workers[1].next(t); got != h {
		t.Errorf("handed off %+v, want %+v", got, h)
	}
	take(t, h, headOf(3))
	if _, err := unix.Read(h.FD, make([]byte, 1)); err != unix.EAGAIN {
		t.Errorf("a read returns %v, want EAGAIN of a non-blocking connection", err)
	}
	fdtest.Eventually(t, "count of the second handoff", func() bool { return b.Stats().HandedOff == 2 }) // behind the delivery
	if s := b.Stats(); s.HandedBack != 1 || s.Accepted != 1 || b.Table().Counts(0).HandedBack != 1 {
		t.Errorf("%+v, slot %+v", s, b.Table().Counts(0))
	}
}

// TestHandBackPartial: of a head in two parts, at every cut, the rest is waited for.
func TestHandBackPartial(t *testing.T) {
	b, workers, proxy, h := pooled(t, nil)
	defer func() { unix.Close(h.FD) }()
	for cut := 1; cut < len(headOf(3)); cut++ {
		from, to := cut%2, 1-cut%2
		from, to = (from+1)%2, (to+1)%2
		head := headOf(2 + to)
		io.WriteString(proxy, head[:cut])
		arrive(t, h, head[:cut])
		if n, err := handBack(b, from, workers[from], h); n != 1 || err != nil {
			t.Fatalf("handed back %d, %v", n, err)
		}
		io.WriteString(proxy, head[cut:])
		h = workers[to].next(t)
		take(t, h, head)
	}
}

// TestHandBackIdle: what a draining worker has between two requests goes to another one that looks at its first
// request, else it waits in the master for that, and ends without a refusal if it does not come.
func TestHandBackIdle(t *testing.T) {
	for _, v := range []struct {
		name   string
		drains bool
		looks  bool
		send   bool
	}{{"to another", true, true, false}, {"to a worker of before", true, false, true}, {"does not drain", false, true, true}, {"in vain", true, false, false}} {
		t.Run(v.name, func(t *testing.T) {
			b, workers, proxy, h := pooled(t, func(c *Config) {
				if c.Clients.HeaderTimeout = testPatience; !v.send {
					c.IdleTimeout = 50 * time.Millisecond
				}
			})
			defer func() {
				if v.looks || v.send {
					unix.Close(h.FD)
				}
			}()
			workers[0].drains.Store(v.drains)
			workers[1].looks.Store(v.looks)
			if n, err := handBack(b, 0, workers[0], h); n != 1 || err != nil {
				t.Fatalf("handed back %d, %v", n, err)
			}
			switch {
			case v.drains && v.looks:
				want := h
				want.Flags = fdpass.FlagUnplaced
				if got := workers[1].next(t); got != want {
					t.Errorf("handed off %+v, want %+v", got, want)
				}
			case v.send:
				io.WriteString(proxy, headOf(3))
				h = workers[1].next(t)
				if h.Flags != 0 {
					t.Errorf("handed off with flags %d", h.Flags)
				}
			default:
				reads(t, proxy, "")
				if s := b.Stats(); s.Refused != 0 || s.Gone != 1 {
					t.Errorf("%+v, want one that is gone", s)
				}
			}
		})
	}
}

// TestHandBackOwn: a connection that belongs to the worker which hands it back comes again, but not at once.
func TestHandBackOwn(t *testing.T) {
	const delay = 50 * time.Millisecond
	b, workers, proxy, h := pooled(t, func(c *Config) { c.RetryDelay = delay })
	defer func() { unix.Close(h.FD) }()
	io.WriteString(proxy, headOf(4))
	arrive(t, h, headOf(4))
	for range 3 {
		start := time.Now()
		if n, err := handBack(b, 0, workers[0], h); n != 1 || err != nil {
			t.Fatalf("handed back %d, %v", n, err)
		}
		h = workers[0].next(t)
		if took := time.Since(start); took < delay {
			t.Errorf("delivered again after %v, want %v", took, delay)
		}
	}
	take(t, h, headOf(4))
}

// TestHandBackOfSession: a connection whose next request names a session goes to the worker that keeps it.
func TestHandBackOfSession(t *testing.T) {
	b, workers, proxy, h := pooled(t, nil)
	defer func() { unix.Close(h.FD) }()
	owner := newKeeper()
	b.Table().Claim(clientip.NameSession("name"), owner, 0)
	head := strings.Replace(headOf(3), "/ ", "/?sid=name ", 1)
	io.WriteString(proxy, head)
	arrive(t, h, head)
	if n, err := handBack(b, 0, workers[0], h); n != 1 || err != nil {
		t.Fatalf("handed back %d, %v", n, err)
	}
	h = owner.next(t)
}

// TestHandBackForeign: nothing but what the master may have handed off is taken, and a connection that its client has ended is that.
func TestHandBackForeign(t *testing.T) {
	socket := func(t *testing.T, domain, typ int) int {
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
		fdtest.Check(t, err)
		return fd
	}
	for name, make := range map[string]func(*testing.T, *Balancer) int{
		"pipe": func(t *testing.T, _ *Balancer) int {
			var p [2]int
			fdtest.Check(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
			unix.Close(p[1])
			return p[0]
		},
		"UDP at our address": func(t *testing.T, b *Balancer) int {
			fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
			fdtest.Check(t, unix.Bind(fd, &unix.SockaddrInet4{Port: int(b.Addresses()[0].Port()), Addr: [4]byte{127, 0, 0, 1}}))
			return fd
		},
		"Unix socket":    func(t *testing.T, _ *Balancer) int { return socket(t, unix.AF_UNIX, unix.SOCK_STREAM) },
		"unbound socket": func(t *testing.T, _ *Balancer) int { return socket(t, unix.AF_INET, unix.SOCK_STREAM) },
		"listener elsewhere": func(t *testing.T, _ *Balancer) int {
			fd := socket(t, unix.AF_INET, unix.SOCK_STREAM)
			fdtest.Check(t, unix.Listen(fd, 1))
			return fd
		},
		"our listener": func(t *testing.T, b *Balancer) int {
			for a := range b.acceptors {
				return fdtest.Duplicate(t, a.file)
			}
			return -1
		},
		"connection elsewhere": func(t *testing.T, _ *Balancer) int {
			_, fd := fdtest.Connection(t)
			return fd
		},
		"the client's end": func(t *testing.T, b *Balancer) int {
			c, err := net.Dial("tcp", b.Addresses()[0].String())
			fdtest.Check(t, err)
			defer c.Close()
			return fdtest.Duplicate(t, c.(*net.TCPConn))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, workers, proxy, h := pooled(t, nil)
			defer unix.Close(h.FD)
			io.WriteString(proxy, headOf(3))
			arrive(t, h, headOf(3))
			fd := make(t, b)
			defer unix.Close(fd)
			n, err := handBack(b, 0, workers[0], h, fdpass.Handoff{FD: fd}, h)
			if n != 1 || !errors.Is(err, ErrForeign) {
				t.Errorf("taken %d, %v", n, err)
			}
			if got := workers[1].next(t); got != h {
				t.Errorf("the first is handed off as %+v", got)
			}
		})
	}
	t.Run("gone", func(t *testing.T) {
		b, workers, proxy, h := pooled(t, nil)
		proxy.(*net.TCPConn).SetLinger(0)
		proxy.Close()
		fdtest.Eventually(t, "reset", func() bool {
			_, err := unix.Getpeername(h.FD)
			return err != nil
		})
		if n, err := handBack(b, 0, workers[0], h); n != 1 || err != nil {
			t.Errorf("taken %d, %v", n, err)
		}
		fdtest.Eventually(t, "its end", func() bool { return b.Stats().Gone == 1 })
	})
}
