package launch

import (
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

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
)

// Drain says how a worker that hears only signals is told to finish.
type Drain struct {
	Signal syscall.Signal
	// Idle tells whether nobody waits for the worker to accept. In a slot that is no more
	// nobody else will, so it is told only then, or after a second. nil: always.
	Idle func() bool
}

// Drainer tells one worker. A goroutine runs for it from Drain on, until Wait.
type Drainer struct {
	how     Drain
	process supervisor.Process
	once    sync.Once
	running sync.WaitGroup
	told    bool // written while reexec.Lock is held for reading
}

// NewDrainer makes one for a worker that is not yet started.
func NewDrainer(how Drain) *Drainer { return &Drainer{how: how} }

// Told tells whether the worker has been told. Ask while reexec.Lock is held for writing.
func (d *Drainer) Told() bool { return d.told }

// SetTold says that the program before has told the worker.
func (d *Drainer) SetTold() {
	d.once.Do(func() {})
	d.told = true
}

// Started says which process it is.
func (d *Drainer) Started(p supervisor.Process) { d.process = p }

// Drain tells the worker to finish, once, and does not wait.
func (d *Drainer) Drain() {
	if d.process != nil {
		d.once.Do(func() { d.running.Go(d.tell) })
	}
}

// Wait waits until Drain has done its work: little more than a second.
func (d *Drainer) Wait() { d.running.Wait() }

func (d *Drainer) tell() {
	end := time.Now().Add(drainPatience)
	time.Sleep(drainDelay)
	for d.how.Idle != nil && !d.how.Idle() && time.Now().Before(end) {
		time.Sleep(queuePoll)
	}
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	d.process.Signal(d.how.Signal)
	d.told = true
}

// DrainSignal returns the signal on which a program finishes what it has and exits, as far as
// we know programs: those that take SIGTERM for "at once" have another one. The whole process
// group gets it.
//
//	nginx, php-fpm   SIGQUIT   (php-fpm: set process_control_timeout, or it waits for nobody)
//	apache2, httpd   SIGWINCH
//	haproxy          SIGUSR1
//	php -S           SIGINT    (finishes one request; what else it has accepted is lost)
//	others           SIGTERM
//
// Some are hasty: uvicorn, and Go's http.Server.Shutdown, then close connections that they have
// accepted and not read a request from. A Go program avoids it by closing its listener a
// moment before. redis closes all.
func DrainSignal(command []string) syscall.Signal {
	if len(command) == 0 {
		return syscall.SIGTERM
	}
	// Debian's names have versions: php8.2, php-fpm8.2.
	switch program := strings.TrimRight(filepath.Base(command[0]), "0123456789."); program {
	case "nginx", "php-fpm":
		return syscall.SIGQUIT
	case "apache", "httpd":
		return syscall.SIGWINCH
	case "haproxy":
		return syscall.SIGUSR1
	case "php":
		return syscall.SIGINT
	}
	return syscall.SIGTERM
}
