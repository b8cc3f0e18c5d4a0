package systemd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/supervisor"
)

// within bounds every wait.
const within = 10 * time.Second

// manager is the socket of a service manager.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T, name string) *manager {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return &manager{t, conn}
}

// hear returns the next message without its status, and that.
func (m *manager) hear() (message []string, status string) {
	m.t.Helper()
	buf := make([]byte, 4096)
	m.conn.SetReadDeadline(time.Now().Add(within))
	n, err := m.conn.Read(buf)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, line := range strings.Split(string(buf[:n]), "\n") {
		if text, is := strings.CutPrefix(line, "STATUS="); is {
			status = text
		} else {
			message = append(message, line)
		}
	}
	return message, status
}

func (m *manager) want(status string, message ...string) {
	m.t.Helper()
	if got, said := m.hear(); !slices.Equal(got, message) || said != status {
		m.t.Errorf("told %q, %q, want %q, %q", got, said, message, status)
	}
}

// source is a master that shows what a test says.
type source struct {
	mu       sync.Mutex
	snapshot *supervisor.Snapshot
	changed  chan struct{}
	stopping chan struct{}
	ping     func(context.Context) error
}

func (s *source) Snapshot() (*supervisor.Snapshot, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot, s.changed
}
func (s *source) Stopping() <-chan struct{}      { return s.stopping }
func (s *source) Ping(ctx context.Context) error { return s.ping(ctx) }

// show replaces the snapshot by one with workers in the first slots.
func (s *source) show(snapshot supervisor.Snapshot, served int) {
	for i := range 2 {
		slot := supervisor.SlotStatus{}
		if i < served {
			slot.Worker = &supervisor.WorkerStatus{}
		}
		snapshot.Slots = append(snapshot.Slots, slot)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshot = &snapshot
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
}

func follow(t *testing.T, s *source) {
	t.Helper()
	n, err := Open()
	if err != nil || n == nil {
		t.Fatal(n, err)
	}
	if s.ping == nil {
		s.ping = func(context.Context) error { return nil }
	}
	s.stopping = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.Follow(ctx, s, func(err error) { t.Error(err) })
	}()
	t.Cleanup(func() { cancel(); <-ended; n.Close() })
}

// TestFollow: a start, a reload that succeeds, one that fails, and the end.
func TestFollow(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@handfast-test-" + strconv.Itoa(unix.Getpid())} {
		m, s := newManager(t, name), &source{}
		first := time.Now()
		s.snapshot, s.changed = &supervisor.Snapshot{Generation: 1}, make(chan struct{}) // the supervisor has not begun
		follow(t, s)
		m.want("0 of 0 slots served, generation 1")
		s.show(supervisor.Snapshot{Generation: 1}, 0)
		m.want("0 of 2 slots served, generation 1")
		s.show(supervisor.Snapshot{Generation: 1}, 1)
		m.want("1 of 2 slots served, generation 1")
		s.show(supervisor.Snapshot{Generation: 1}, 2)
		m.want("2 of 2 slots served, generation 1", "READY=1")

		s.show(supervisor.Snapshot{Generation: 2, Reload: &supervisor.ReloadStatus{Generation: 2, Slots: 2, Began: first}}, 2)
		got, status := m.hear()
		if len(got) != 2 || got[0] != "RELOADING=1" || status != "Reload to generation 2: 0 of 2 slots" {
			t.Fatalf("told %q, %q", got, status)
		}
		digits, _ := strings.CutPrefix(got[1], "MONOTONIC_USEC=")
		usec, err := strconv.ParseInt(digits, 10, 64)
		var now unix.Timespec
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
		if age := now.Nano()/1000 - usec; err != nil || age < 0 || age > within.Microseconds() {
			t.Errorf("told %q, which is %d µs ago", got[1], age)
		}
		s.show(supervisor.Snapshot{Generation: 2, Reload: &supervisor.ReloadStatus{Generation: 2, Done: 1, Slots: 2, Began: first}}, 2)
		m.want("Reload to generation 2: 1 of 2 slots")
		s.show(supervisor.Snapshot{Generation: 2, Reload: &supervisor.ReloadStatus{Generation: 2, Done: 2, Slots: 2, Began: first, Ended: time.Now()}}, 2)
		m.want("2 of 2 slots served, generation 2", "READY=1")

		// A reload that has ended before anybody looked.
		failed := &supervisor.ReloadStatus{Generation: 3, Slots: 2, Began: first.Add(1), Ended: time.Now(), Err: errors.New("it is broken")}
		s.show(supervisor.Snapshot{Generation: 3, Reload: failed}, 2)
		if got, _ := m.hear(); got[0] != "RELOADING=1" {
			t.Errorf("told %q", got)
		}
		m.want("2 of 2 slots served; the reload failed: it is broken", "READY=1")

		close(s.stopping)
		m.want("Stopping: 2 of 2 slots served, soon nobody is accepted any more", "STOPPING=1")
		// A reload that was under way ends, which does not make it ready again.
		s.show(supervisor.Snapshot{Generation: 4, Reload: &supervisor.ReloadStatus{Generation: 4, Slots: 2, Began: first.Add(2), Ended: time.Now()}}, 1)
		m.want("Stopping: 1 of 2 slots served, soon nobody is accepted any more")
		s.show(supervisor.Snapshot{Stopping: true}, 1)
		m.want("Stopping: 1 workers finish what they have")
	}
}

// TestWatchdog: twice in an interval the manager hears that the master is alive, unless it
// is not.
func TestWatchdog(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(unix.Getpid()))
	pings, hung := make(chan struct{}), make(chan struct{})
	s := &source{ping: func(ctx context.Context) error {
		select {
		case pings <- struct{}{}:
			return nil
		case <-hung:
			<-ctx.Done()
			return ctx.Err()
		}
	}}
	s.show(supervisor.Snapshot{Generation: 1}, 0)
	follow(t, s)
	m.want("0 of 2 slots served, generation 1")
	for range 3 {
		select {
		case <-pings:
		case <-time.After(within):
			t.Fatal("not asked whether it lives")
		}
		m.want("", "WATCHDOG=1")
	}
	close(hung)
	s.show(supervisor.Snapshot{Generation: 1}, 1)
	m.want("1 of 2 slots served, generation 1") // and nothing else before it

	t.Setenv("WATCHDOG_PID", "1")
	if watchdog() != 0 {
		t.Error("took another process's watchdog for ours")
	}
}

// TestOpen: no manager, and one that is not there.
func TestOpen(t *testing.T) {
	for path, wrong := range map[string]bool{"": false, "vsock:2:1": true, "/no/such/socket": true} {
		t.Setenv("NOTIFY_SOCKET", path)
		if n, err := Open(); n != nil || (err != nil) != wrong {
			t.Errorf("%q: %v, %v", path, n, err)
		}
	}
}
