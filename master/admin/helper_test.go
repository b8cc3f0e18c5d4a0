package admin

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/supervisor"
)

const patience = fdtest.Patience

// fake is a master that does what the test says.
type fake struct {
	hangs   error // what Ping returns
	mu      sync.Mutex
	current supervisor.Snapshot
	changed chan struct{}
	result  chan error // of a reload or a replacement
	err     error      // of all that is asked for
	did     []any
	stopped bool
	linger  []supervisor.Seat // of workers that do
}

var errFake = errors.New("because")

func newFake(slots int) *fake {
	f := &fake{changed: make(chan struct{}), result: make(chan error, 1)}
	f.current.Generation, f.current.InUse = 1, slots
	for i := range slots {
		f.current.Slots = append(f.current.Slots, supervisor.SlotStatus{Worker: worker(i, 1, 100+i)})
	}
	return f
}

func worker(slot, generation, pid int) *supervisor.WorkerStatus {
	return &supervisor.WorkerStatus{Seat: supervisor.Seat{Slot: slot, Generation: generation}, PID: pid}
}

// change publishes another snapshot.
func (f *fake) change(change func(s *supervisor.Snapshot)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.current
	s.Slots = append([]supervisor.SlotStatus(nil), s.Slots...)
	if s.Reload != nil {
		reload := *s.Reload
		s.Reload = &reload
	}
	change(&s)
	f.current = s
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) do(what any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, what)
	return f.err
}

func (f *fake) NotReady() string {
	s := f.Status()
	return s.NotReady()
}

func (f *fake) Status() master.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return master.Status{Name: "fake", Stopping: f.stopped, Slots: []master.SlotStatus{{InUse: true, Worker: &master.WorkerStatus{PID: 100}}}}
}

func (f *fake) Place(client string) (master.Placement, error) {
	return master.Placement{Client: client, Slot: 2}, f.do(client)
}

func (f *fake) Snapshot() (*supervisor.Snapshot, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.current
	return &s, f.changed
}

func (f *fake) StartReload() (int, <-chan error, error) { return 2, f.result, f.do("reload") }
func (f *fake) Scale(slots int) error                   { return f.do(slots) }
func (f *fake) Ping(context.Context) error              { return f.hangs }
func (f *fake) Stop()                                   { f.do("stop") }

func (f *fake) StartReplace(slot int) (<-chan error, error) { return f.result, f.do(slot) }

func (f *fake) DrainLingering(asked func(supervisor.Seat) bool) (n int, err error) {
	for _, seat := range f.linger {
		if asked(seat) {
			n++
		}
	}
	return n, f.do(n)
}

func (f *fake) deeds() []any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.did
}

// socket is a path for a socket; the test's own directory may have too long a name.
func socket(t testing.TB) Address {
	t.Helper()
	dir, err := os.MkdirTemp("", "handfast")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Address{"unix", filepath.Join(dir, "admin"+suffix)}
}

// serve answers for a master until stop or the end of the test.
func serve(t testing.TB, m Master, a Address) (ln net.Listener, stop func()) {
	t.Helper()
	return serveBy(t, NewServer(m, hclog.NewNullLogger()), a)
}

func serveBy(t testing.TB, s *Server, a Address) (ln net.Listener, stop func()) {
	t.Helper()
	ln, err := Listen(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return ln, stop
}

// client returns a client of a master that is served on a Unix socket.
func client(t testing.TB, m Master) *Client {
	a := socket(t)
	serve(t, m, a)
	return NewClient(a)
}
