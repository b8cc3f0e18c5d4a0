package output

import (
	"encoding/json"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// leftoverTimeout is how long the files of a worker are still read when its own processes have ended.
	leftoverTimeout = 10 * time.Second
	// closeTimeout is the same when all ends.
	closeTimeout = time.Second
)

// Sink takes whole lines, and returns when they are written or cannot be: *logging.Queue.
type Sink interface{ Pass(lines []byte) }

// Form is that of a line.
type Form int

// The forms.
const (
	Plain  Form = iota // as it was
	Prefix             // behind its slot
	JSON               // an object, with its worker
)

// Config says what becomes of the output of workers.
type Config struct {
	Form Form

	// Stdout and Stderr get the lines. If both are the same, workers get one file as both, unless JSON tells them apart.
	Stdout, Stderr Sink
	// InheritStdout: workers get our standard output as theirs.
	InheritStdout bool

	// Terminal is the one that workers print to in the end: theirs get its size. nil: they get pipes.
	Terminal *os.File

	// Owner is the user that workers run as, so that they can open their files by name (/dev/stderr). nil: ours.
	Owner *syscall.Credential
}

// Collector reads what workers print. Goroutines: one for each file of a worker until it has ended,
// and one that follows the size of the terminal until Close.
type Collector struct {
	cfg     Config
	running sync.WaitGroup
	resized chan os.Signal

	mu   sync.Mutex
	open map[*Output]struct{}
}

// New makes a Collector.
func New(cfg Config) *Collector {
	c := &Collector{cfg: cfg, open: make(map[*Output]struct{}), resized: make(chan os.Signal, 1)}
	if cfg.Terminal != nil {
		signal.Notify(c.resized, unix.SIGWINCH)
		c.running.Go(c.followSize)
	}
	return c
}

// NewOutput is for supervisor.Config.
func (c *Collector) NewOutput(seat supervisor.Seat) (supervisor.Output, error) {
	o := &Output{collector: c, seat: seat, prefix: prefixFor(seat)}
	if err := o.openFiles(); err != nil {
		o.closeFiles()
		return nil, err
	}
	c.add(o)
	return o, nil
}

// RestoreOutput is for supervisor.Config.
func (c *Collector) RestoreOutput(b *reexec.Bundle) func(supervisor.Seat, int, json.RawMessage) (supervisor.Output, error) {
	return func(seat supervisor.Seat, pid int, state json.RawMessage) (supervisor.Output, error) {
		o := &Output{collector: c, seat: seat, pid: pid, prefix: prefixFor(seat)}
		if err := o.restore(b, state); err != nil {
			o.closeFiles()
			return nil, err
		}
		c.add(o)
		return o, nil
	}
}

func (c *Collector) add(o *Output) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[o] = struct{}{}
}

func (c *Collector) remove(o *Output) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, o)
}

// Close reads what is left, and returns when that is done, or after a second. Call it when all workers have ended,
// and before the sinks are closed.
func (c *Collector) Close() {
	signal.Stop(c.resized)
	close(c.resized)
	c.mu.Lock()
	for o := range c.open {
		o.readUntil(time.Now().Add(closeTimeout / 2))
	}
	c.mu.Unlock()
	ended := make(chan struct{})
	go func() { c.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
	}
}

// followSize gives terminals of workers the size of ours.
func (c *Collector) followSize() {
	for range c.resized {
		c.mu.Lock()
		for o := range c.open {
			o.resize()
		}
		c.mu.Unlock()
	}
}
