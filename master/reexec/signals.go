package reexec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/reexec/early"
)

// signals are those that mean something to a master and that Exec blocks, so that they wait for the
// next program. A Go program lets nobody block those that end it by default: see Notify.
var signals = []syscall.Signal{unix.SIGUSR1, unix.SIGUSR2, unix.SIGTTIN, unix.SIGTTOU}

// Signals are those that a program is sent. What it has received and not acted on when Exec runs goes to the next
// program. A goroutine runs until Stop.
type Signals struct {
	caught  chan os.Signal // by os/signal
	wanted  []syscall.Signal
	pipe    [2]int        // to which threads record signals while os/signal cannot catch them
	news    chan struct{} // has room for one: something waits
	stopped chan struct{}

	mu      sync.Mutex
	waiting []*Received // for Next
	undone  []*Received // also these
}

// Received is a signal that the program is to act on.
type Received struct {
	Signal syscall.Signal
	of     *Signals
}

// current are the program's Signals; nil: none.
var current *Signals

// capacity is how many signals wait to be noted.
const capacity = 64

// Notify is signal.Notify for a program that may have been run by Exec: here comes also what has been waiting, and what
// the program before has not acted on. Call it once, after Inherited.
//
// SIGHUP, SIGINT and SIGTERM cannot wait while the next program starts: the Go runtime unblocks them at its start
// (minitSignalMask), before it catches them, and where nobody has asked for them they end the program. They are
// asked for from the first moment on in which that is possible (package early), and Exec has SIGHUP, which asks
// for what is being done, ignored until then.
//
// The others wait. But os/signal unblocks a signal, and then catches it. The runtime has caught most
// of them from the start, not SIGTTIN and SIGTTOU: one that waits would stop the process, so they are recorded.
func Notify(signals ...syscall.Signal) (*Signals, error) {
	s := &Signals{caught: early.Signals, wanted: signals, news: make(chan struct{}, 1), stopped: make(chan struct{})}
	if s.caught == nil {
		s.caught = make(chan os.Signal, capacity)
	}
	if err := unix.Pipe2(s.pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("reexec: %w", os.NewSyscallError("pipe2", err))
	}
	go s.note()
	record([]syscall.Signal{unix.SIGTTIN, unix.SIGTTOU}, s.pipe[1])
	for _, sig := range signals {
		signal.Notify(s.caught, sig)
	}
	for _, sig := range leftOver.take() {
		s.add(sig)
	}
	s.addRecorded()
	current = s
	return s, nil
}

// Stop ends it. Signals have their default action again. The pipe stays: a thread may be about to write to it.
func (s *Signals) Stop() {
	signal.Stop(s.caught)
	if current == s {
		current = nil
	}
	close(s.stopped)
}

// Next waits for a signal; it returns nil when ctx ends. Call it from one goroutine, and Done of what it returns.
func (s *Signals) Next(ctx context.Context) *Received {
	for {
		s.mu.Lock()
		if len(s.waiting) > 0 {
			r := s.waiting[0]
			s.waiting = s.waiting[1:]
			s.mu.Unlock()
			return r
		}
		s.mu.Unlock()
		select {
		case <-s.news:
		case <-ctx.Done():
			return nil
		}
	}
}

// Done says that the program has acted on the signal, as far as it ever will. One that is to be acted on by the
// next program if there is one, such as that the program is to end, is not done.
func (r *Received) Done() {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.of.undone = slices.DeleteFunc(r.of.undone, func(other *Received) bool { return other == r })
}

// note adds what is caught.
func (s *Signals) note() {
	for {
		select {
		case sig := <-s.caught:
			switch sig := sig.(type) {
			case mark:
				close(sig)
			case syscall.Signal:
				s.add(sig)
			}
		case <-s.stopped:
			return
		}
	}
}

// mark follows signals on their channel: when it is closed, they are noted.
type mark chan struct{}

func (mark) Signal()        {}
func (mark) String() string { return "mark" }

// add notes a signal. One that waits already is the same, as in the kernel.
func (s *Signals) add(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.waiting, func(r *Received) bool { return r.Signal == sig }) {
		return
	}
	r := &Received{sig, s}
	s.waiting, s.undone = append(s.waiting, r), append(s.undone, r)
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// handOver has all signals that come from now on go to the next program, until undo: this thread blocks them, so that
// they wait in the kernel when the others have ended, and those record them in a pipe, without the Go runtime. It
// returns the pipe, and what to add to the variable. s may be nil: then none is wanted.
func (s *Signals) handOver() (pipe int, passed string, undo func(), err error) {
	mask, before := maskOf(signals), unix.Sigset_t{}
	if s != nil {
		mask = maskOf(append(slices.Clone(signals), s.wanted...))
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &mask, &before); err != nil {
		return -1, "", nil, fmt.Errorf("reexec: %w", os.NewSyscallError("rt_sigprocmask", err))
	}
	unblock := func() { unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }
	if s == nil {
		return -1, "", unblock, nil
	}
	catch := record(s.wanted, s.pipe[1])
	s.awaitHandlers()
	rest := left{s.pipe[0], s.rest()}
	return s.pipe[0], ":" + rest.String(), func() {
		catch()
		s.addRecorded()
		unblock()
	}, nil
}

// rest returns what was not acted on, of all that the Go runtime has taken from the kernel before.
func (s *Signals) rest() (rest []syscall.Signal) {
	// The runtime notes a signal, and a goroutine of os/signal passes it on. To stop the notification of a
	// channel waits until it has.
	unheard := make(chan os.Signal, 1)
	signal.Notify(unheard, s.wanted[0])
	signal.Stop(unheard)
	m := make(mark)
	s.caught <- m
	<-m
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.undone {
		if !slices.Contains(rest, r.Signal) {
			rest = append(rest, r.Signal)
		}
	}
	return rest
}

// addRecorded adds what threads have recorded, and returns how many marks were among it.
func (s *Signals) addRecorded() (marks int) {
	signals, marks := recorded(s.pipe[0])
	for _, sig := range signals {
		s.add(sig)
	}
	return marks
}

// handlersTimeout is how long threads may take to leave the handlers in which they are.
const handlersTimeout = time.Second

// awaitHandlers waits until no thread is in a handler of the Go runtime any more: it may have taken a signal from the kernel,
// and not yet noted it.
func (s *Signals) awaitHandlers() {
	if !slices.Contains(s.wanted, unix.SIGTERM) {
		return
	}
	left := markThreads(unix.SIGTERM)
	for end := time.Now().Add(handlersTimeout); left > 0 && time.Now().Before(end); {
		unix.Poll([]unix.PollFd{{Fd: int32(s.pipe[0]), Events: unix.POLLIN}}, int(handlersTimeout/time.Millisecond))
		left -= s.addRecorded()
	}
}

// leftOver is what the program before has not acted on.
var leftOver left

type left struct {
	pipe    int // what its threads have recorded in the end; 0: none
	signals []syscall.Signal
}

// take returns all of that, once.
func (l *left) take() []syscall.Signal {
	all := l.signals
	if l.pipe != 0 {
		more, _ := recorded(l.pipe)
		all = append(all, more...)
		unix.Close(l.pipe)
	}
	*l = left{}
	return all
}

func (l *left) String() string {
	var words []string
	for _, sig := range l.signals {
		words = append(words, strconv.Itoa(int(sig)))
	}
	return fmt.Sprintf("%d:%s", l.pipe, strings.Join(words, ","))
}

func parseLeft(text string) (l left, err error) {
	pipe, list, _ := strings.Cut(text, ":")
	if l.pipe, err = strconv.Atoi(pipe); err != nil || l.pipe <= unix.Stderr {
		return left{}, errors.New("no pipe")
	}
	for word := range strings.SplitSeq(list, ",") {
		sig, err := strconv.ParseUint(word, 10, 6) // there are 64
		if err != nil && list != "" {
			return left{}, err
		}
		if sig != 0 {
			l.signals = append(l.signals, syscall.Signal(sig))
		}
	}
	unix.CloseOnExec(l.pipe)
	return l, nil
}

// maskOf is a set of signals.
func maskOf(signals []unix.Signal) (set unix.Sigset_t) {
	const word = 64 // bits: of an unsigned long, on the machines that we know
	for _, sig := range signals {
		set.Val[(sig-1)/word] |= 1 << ((sig - 1) % word)
	}
	return set
}

// Unblocked calls f on a thread that blocks no signal that Exec does, so that a process that f
// starts does not either: it would inherit that.
func Unblocked(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mask, before := maskOf(signals), unix.Sigset_t{}
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &mask, &before); err != nil {
		return fmt.Errorf("reexec: %w", os.NewSyscallError("rt_sigprocmask", err))
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	return f()
}
