package balancer

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec"
)

// fakeWatcher knows what is watched, by descriptor.
type fakeWatcher map[int]uint64

func (w fakeWatcher) add(fd int, id uint64) error { w[fd] = id; return nil }
func (w fakeWatcher) remove(fd int)               { delete(w, fd) }
func (w fakeWatcher) close()                      {}

// TestIdlers: which connections leave, and when. Numbers stand for descriptors.
func TestIdlers(t *testing.T) {
	const timeout, room = 75 * time.Second, 3
	type event struct {
		at    time.Duration
		enter int // that is handed back
		come  int // on which something comes
		shed  int // how many have to go
		close bool
	}
	const s = time.Second
	for name, tt := range map[string]struct {
		events []event
		want   string // who leaves at which second
	}{
		"each after its time":             {[]event{{at: 0, enter: 1}, {at: 10 * s, enter: 2}, {at: 20 * s, enter: 3}}, "1@75 2@85 3@95"},
		"when its request comes":          {[]event{{at: 0, enter: 1}, {at: 10 * s, enter: 2}, {at: 30 * s, come: 1}}, "1@30 2@85"},
		"it comes back":                   {[]event{{at: 0, enter: 1}, {at: 60 * s, come: 1}, {at: 70 * s, enter: 1}}, "1@60 1@145"},
		"idle longest first, if too many": {[]event{{at: 0, enter: 1}, {at: 1 * s, enter: 2}, {at: 2 * s, enter: 3}, {at: 3 * s, enter: 4}}, "1@3 2@76 3@77 4@78"},
		"room for another":                {[]event{{at: 0, enter: 1}, {at: 1 * s, enter: 2}, {at: 2 * s, shed: 1}, {at: 2 * s, shed: 9}}, "1@2 2@2"},
		"all at once at the end":          {[]event{{at: 0, enter: 1}, {at: 1 * s, enter: 2}, {at: 2 * s, close: true}, {at: 3 * s, enter: 3}}, "1@2 2@2 not 3@3"},
		"nobody again after a long time":  {[]event{{at: 0, enter: 1}, {at: 1000 * s, enter: 2}}, "1@75 2@1075"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var left []string
				note := func(format string, fd int) {
					left = append(left, fmt.Sprintf(format, fd, int(time.Since(began).Seconds())))
				}
				watched := fakeWatcher{}
				l := newIdlers(timeout, func() int { return room }, func(conns []connection) {
					for _, c := range conns {
						note("%d@%d", c.FD)
					}
				})
				l.watch = func(func([]uint64)) (watcher, error) { return watched, nil }
				for _, e := range tt.events {
					time.Sleep(e.at - time.Since(began))
					synctest.Wait()
					reexec.Lock.RLock()
					switch {
					case e.enter > 0:
						if !l.enter(connection{Handoff: fdpass.Handoff{FD: e.enter}}) {
							note("not %d@%d", e.enter)
						}
					case e.shed > 0:
						l.shed(e.shed)
					}
					reexec.Lock.RUnlock()
					if e.come > 0 {
						id := watched[e.come]
						l.come([]uint64{id, id, 1 << 40}) // what is there no longer is passed over
					}
					if e.close {
						l.close()
					}
				}
				time.Sleep(2 * timeout)
				synctest.Wait()
				if got := strings.Join(left, " "); got != tt.want || l.len() > 0 || len(watched) > 0 {
					t.Errorf("left: %s, want %s; %d stay, %d are watched", got, tt.want, l.len(), len(watched))
				}
			})
		})
	}
}

// isIdle waits until so many connections are idle, and nothing is parked.
func isIdle(t *testing.T, b *Balancer, n int) {
	t.Helper()
	if !fdtest.Poll(func() bool { return b.Idle() == n && b.Stats().Parked == 0 }) {
		t.Fatalf("%d idle, %+v; want %d idle", b.Idle(), b.Stats(), n)
	}
}

// TestIdleIsNotSlow: a connection that is between two requests for longer than the header timeout stays. That counts
// from the first byte of the next request.
func TestIdleIsNotSlow(t *testing.T) {
	const timeout = 50 * time.Millisecond
	b, workers, proxy, h := pooled(t, func(c *Config) { c.Clients.HeaderTimeout = timeout })
	for range 3 {
		if n, err := handBack(b, 0, workers[0], h); n != 1 || err != nil {
			t.Fatalf("handed back %d, %v", n, err)
		}
		isIdle(t, b, 1)
		time.Sleep(2 * timeout)
		isIdle(t, b, 1)
		io.WriteString(proxy, headOf(3))
		h = workers[1].next(t)
		take(t, h, headOf(3))
	}
	if n, err := handBack(b, 1, workers[1], h); n != 1 || err != nil {
		t.Fatalf("handed back %d, %v", n, err)
	}
	began := time.Now()
	io.WriteString(proxy, "GET / HT")
	answer := make([]byte, 12)
	if _, err := io.ReadFull(proxy, answer); err != nil || string(answer) != "HTTP/1.1 408" || time.Since(began) < timeout {
		t.Errorf("read %q, %v, after %v", answer, err, time.Since(began))
	}
	proxy.Close()
	isIdle(t, b, 0)
}

// TestIdleEnds: a connection that its client ends, in whichever way, is gone and goes to no worker; and so is one at the end.
func TestIdleEnds(t *testing.T) {
	for name, end := range map[string]func(b *Balancer, proxy *net.TCPConn){
		"close": func(_ *Balancer, proxy *net.TCPConn) { proxy.Close() },
		"half":  func(_ *Balancer, proxy *net.TCPConn) { proxy.CloseWrite() },
		"reset": func(_ *Balancer, proxy *net.TCPConn) { proxy.SetLinger(0); proxy.Close() },
		"stop":  func(b *Balancer, _ *net.TCPConn) { b.Shutdown(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			b, workers, proxy, h := pooled(t, nil)
			handBack(b, 0, workers[0], h)
			isIdle(t, b, 1)
			end(b, proxy.(*net.TCPConn))
			fdtest.Poll(func() bool { return b.Stats().Gone == 1 })
			isIdle(t, b, 0)
			if !fdtest.Poll(func() bool { s := b.Stats(); return s.Gone == 1 && s.HandedOff == 1 && s.Refused == 0 }) { // counted behind what is seen
				t.Errorf("%+v", b.Stats())
			}
			if name == "stop" {
				reads(t, proxy, "")
			}
		})
	}
}

// TestIdleRoom: half of --max-parked connections are idle, beside those that are parked. When there are more, the one that is idle longest ends.
func TestIdleRoom(t *testing.T) {
	table := NewTable(1)
	b, dial, _ := serveTest(t, table, func(c *Config) {
		behindProxy(c)
		c.MaxParked = 4
	})
	w := newKeeper()
	table.Fill(0, w)
	var proxies []net.Conn
	for i := range 4 {
		proxy := dial(1)
		proxies = append(proxies, proxy)
		io.WriteString(proxy, headOf(2))
		h := w.next(t)
		take(t, h, headOf(2))
		handBack(b, 0, w, h)
		isIdle(t, b, min(i+1, 2))
	}
	reads(t, proxies[0], "")
	reads(t, proxies[1], "")
	table.Fill(0, nil)
	for range 4 {
		io.WriteString(dial(1), headOf(2))
	}
	if !fdtest.Poll(func() bool { return b.Stats().Parked == 4 }) || b.Idle() != 2 {
		t.Errorf("%+v, %d idle", b.Stats(), b.Idle())
	}
	table.Fill(0, busyWorker("w"))
	for _, proxy := range proxies[2:] {
		io.WriteString(proxy, headOf(2))
		begins(t, proxy, "w")
	}
}

// TestIdleSaved: idle connections stay idle in the next program, the longest first.
func TestIdleSaved(t *testing.T) {
	b, workers, proxy, h := pooled(t, nil)
	copied, err := unix.FcntlInt(uintptr(h.FD), unix.F_DUPFD_CLOEXEC, 0)
	fdtest.Check(t, err)
	handBack(b, 0, workers[0], h)
	isIdle(t, b, 1)
	bundle := reexec.NewBundle("test")
	reexec.Lock.Lock()
	saved := b.SaveParked(bundle)
	reexec.Lock.Unlock()
	if len(saved) != 1 || !saved[0].Idle || saved[0].FD != h.FD {
		t.Fatalf("saved %+v", saved)
	}
	saved[0].FD = copied // as the next program has one, while the first is there still
	next, err := New(b.Config(), b.Table())
	fdtest.Check(t, err)
	next.RestoreAddresses(b.Addresses())
	next.ReadmitParked(saved)
	isIdle(t, next, 1)
	b.Shutdown(t.Context()) // it closes its own
	io.WriteString(proxy, headOf(3))
	got := workers[1].next(t)
	take(t, got, headOf(3))
	unix.Close(got.FD)
	next.Shutdown(t.Context())
}
