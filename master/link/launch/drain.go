package launch

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/openconns"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// drainDelay is how long a worker that is to finish accepts at least: connections may be
	// under way to it.
	drainDelay = 100 * time.Millisecond
	// drainPatience is how long it accepts at most, if its queue does not become empty.
	drainPatience = time.Second
	// queuePoll is the time between two looks at the queue.
	queuePoll = 5 * time.Millisecond
	// sudden is how soon after its signal a worker ends that has not finished anything.
	sudden = 500 * time.Millisecond
	// exitSignalled and the signal are the status of a shell, or of Java, that one has ended.
	exitSignalled = 128
)

// NoSignal in place of a signal: a worker that is to finish is told nothing until it has no
// connection left.
const NoSignal = syscall.Signal(-1)

// SignalName is a signal as --drain-signal has it, such as TERM.
func SignalName(signal syscall.Signal) string {
	if signal == NoSignal {
		return "none"
	}
	return strings.TrimPrefix(unix.SignalName(signal), "SIG")
}

// Drain says how a worker that knows nothing of us is made to finish.
type Drain struct {
	// Signal tells it, or NoSignal.
	Signal syscall.Signal
	// Idle tells whether nobody waits for the worker to accept. In a slot that is no more
	// nobody else will, so it is told only then, or after a second. nil: always.
	Idle func() bool
	// Open tells whether it has connections that are to be waited for, and fails if that cannot be
	// known. Required with NoSignal.
	Open func(pid int) (bool, error)
	// Busy tells whether it has connections that it cannot just close. nil: nobody wants to know.
	Busy   func(pid int) (bool, error)
	Logger hclog.Logger // nil: none
}

// Drainer makes one worker finish. A goroutine runs for it from Drain on, until End.
type Drainer struct {
	how      Drain
	process  supervisor.Process
	once     sync.Once
	running  sync.WaitGroup
	stop     chan struct{} // closed by End
	finished chan struct{}

	mu      sync.Mutex // and reexec.Lock is held for reading
	toldAt  time.Time  // zero: not
	wasBusy bool       // then
}

// NewDrainer makes one for a worker that is not yet started.
func NewDrainer(how Drain) *Drainer {
	if how.Logger == nil {
		how.Logger = hclog.NewNullLogger()
	}
	return &Drainer{how: how, stop: make(chan struct{}), finished: make(chan struct{})}
}

// Told tells whether the worker has been sent its signal. Ask while reexec.Lock is held for writing.
func (d *Drainer) Told() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.toldAt.IsZero()
}

// SetTold says that the program before has sent it.
func (d *Drainer) SetTold() {
	d.once.Do(func() {})
	d.toldAt = time.Now()
}

// Started says which process it is.
func (d *Drainer) Started(p supervisor.Process) { d.process = p }

// Drain has the worker finish, and does not wait. Further calls have no effect.
func (d *Drainer) Drain() {
	if d.process != nil {
		d.once.Do(func() { d.running.Go(d.drain) })
	}
}

// Finished is closed when a worker that is told nothing (NoSignal) has no connection left after
// Drain.
func (d *Drainer) Finished() <-chan struct{} { return d.finished }

// DrainsGroup is true: a signal reaches the whole process group.
func (d *Drainer) DrainsGroup() bool { return true }

// End ends what Drain has begun. Call it once.
func (d *Drainer) End() {
	close(d.stop)
	d.running.Wait()
}

func (d *Drainer) drain() {
	if d.how.Signal == NoSignal {
		d.awaitEnd()
		return
	}
	if !d.sleep(drainDelay) {
		return
	}
	for end := time.Now().Add(drainPatience); !d.isIdle() && time.Now().Before(end); {
		if !d.sleep(queuePoll) {
			return
		}
	}
	d.signal(d.how.Signal)
}

// awaitEnd waits until the worker has no connection, neither in its hands nor in its queue.
func (d *Drainer) awaitEnd() {
	if !d.sleep(drainDelay) {
		return
	}
	pid := d.process.PID()
	none, err := openconns.Await(d.stop, func() (bool, error) {
		if !d.isIdle() {
			return false, nil
		}
		open, err := d.how.Open(pid)
		return !open, err
	})
	switch {
	case none:
		close(d.finished)
	case err != nil:
		d.how.Logger.Warn("cannot see which connections a worker has open, so it is told to finish by a signal", "pid", pid, "signal", "TERM",
			"remedy", remedyHidden(err), "err", err)
		d.signal(syscall.SIGTERM)
	}
}

func remedyHidden(err error) string {
	if errors.Is(err, openconns.ErrHidden) {
		return "run handfast with CAP_SYS_PTRACE, or say --drain-signal with the signal on which this program finishes"
	}
	return "say --drain-signal with the signal on which this program finishes"
}

func (d *Drainer) signal(sig syscall.Signal) {
	busy := false
	if d.how.Busy != nil {
		busy, _ = d.how.Busy(d.process.PID())
	}
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.process.Signal(sig)
	d.toldAt, d.wasBusy = time.Now(), busy
}

// Lost tells whether a worker that has ended so was ended by the signal on which it should have
// finished, at once although it was busy. Ask when it has ended.
func (d *Drainer) Lost(exit supervisor.Exit) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	ofIt := exit.Signal == d.how.Signal.String() || exit.Code == exitSignalled+int(d.how.Signal)
	return d.wasBusy && time.Since(d.toldAt) < sudden && ofIt
}

func (d *Drainer) isIdle() bool { return d.how.Idle == nil || d.how.Idle() }

// sleep returns false when End is called meanwhile.
func (d *Drainer) sleep(delay time.Duration) bool {
	select {
	case <-time.After(delay):
		return true
	case <-d.stop:
		return false
	}
}
