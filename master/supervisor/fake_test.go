package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/master/reexec"
)

// play runs a script in a world where processes, links and time are not real.
// Whatever the script leaves running is killed in the end; then every link must
// have been closed once.
func play(t *testing.T, script func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, cfg: DefaultConfig(), made: map[int]int{}}
		w.cfg.Command = []string{"server"}
		w.cfg.Workers = 1
		w.cfg.NewLink, w.cfg.Start, w.cfg.Slots, w.cfg.OnEvent = w.newLink, w.start, w, w.hear
		w.cfg.Probation = 0 // unless the script has another
		w.cfg.NewOutput = w.newOutput
		defer w.end()
		script(w)
	})
}

// world is everything around a Supervisor. A worker is named by its slot and a
// letter: 1a is the first that was made for slot 1, 1b the second.
//
// All that the supervisor does is written down as lines, such as "0a starts", "fill
// 0a", "0a drains", "0a TERM", and expect compares them. The world belongs to the
// supervisor while it does something, and to the script while it waits.
type world struct {
	*testing.T
	cfg Config
	s   *Supervisor

	linkErr, startErr error  // why nothing can be started now
	drainsFirst       bool   // links tell the first process of a group alone to finish
	words             string // what workers write

	outputs int           // that are open
	closing chan struct{} // links are closed when this is; nil: at once

	made   map[int]int // number of workers made for a slot
	fakes  []*fake
	table  []*fake  // what is in the slots
	lines  []string // since the last expect
	events []string // all

	order sync.Mutex

	kill context.CancelFunc
	ran  chan error // what Run returned
}

// run starts the supervisor.
func (w *world) run() {
	w.Helper()
	if w.s == nil {
		w.create()
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.kill, w.ran = cancel, make(chan error, 1)
	go func() { w.ran <- w.s.Run(ctx) }()
	w.settle()
}

func (w *world) create() {
	w.Helper()
	s, err := New(w.cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.s = s
}

// serve runs n workers, all of them ready.
func (w *world) serve(n int) {
	w.Helper()
	w.cfg.Workers = n
	w.run()
	for slot := range n {
		w.ready(fmt.Sprint(slot, "a"))
	}
	w.lines, w.events = nil, nil
}

func (w *world) end() {
	if w.kill != nil {
		w.kill()
		<-w.s.done
	}
	for _, f := range w.fakes {
		f.end(Exit{})
	}
	w.settle()
	if w.outputs != 0 {
		w.Errorf("%d outputs were not closed", w.outputs)
	}
	for _, f := range w.fakes {
		if f.closed != 1 {
			w.Errorf("the link of %s was closed %d times, want once", f.name, f.closed)
		}
	}
}

// expect compares what the supervisor has done since the last time.
func (w *world) expect(want ...string) {
	w.Helper()
	w.settle()
	if !slices.Equal(w.lines, want) {
		w.Fatalf("supervisor did\n\t%s\nwant\n\t%s", strings.Join(w.lines, "; "), strings.Join(want, "; "))
	}
	w.lines = nil
}

// expectAnyOrder is for what happens at the same time.
func (w *world) expectAnyOrder(want ...string) {
	w.Helper()
	w.settle()
	slices.Sort(w.lines)
	slices.Sort(want)
	w.expect(want...)
}

// after wants nothing to happen before that time, and then this.
func (w *world) after(d time.Duration, want ...string) {
	w.Helper()
	w.pass(d - 1)
	w.expect()
	w.pass(1)
	w.expect(want...)
}

// pass lets time go by. What the script has written before, the supervisor reads
// after.
func (w *world) pass(d time.Duration) {
	w.inOrder()
	time.Sleep(d)
	w.settle()
}

// settle waits until nothing happens without the script, or without time going by.
func (w *world) settle() {
	synctest.Wait()
	w.inOrder()
}

// inOrder tells the race detector what it cannot know: a timer that fires does not
// order what was before the sleep.
func (w *world) inOrder() {
	w.order.Lock()
	defer w.order.Unlock()
}

// holds compares the table: the workers in the slots, - for an empty one.
func (w *world) holds(want string) {
	w.Helper()
	w.settle()
	var names []string
	for _, f := range w.table {
		names = append(names, f.String())
	}
	if got := strings.Join(names, " "); got != want {
		w.Fatalf("slots hold %q, want %q", got, want)
	}
}

// saw wants these among the events, in this order.
func (w *world) saw(want ...string) {
	w.Helper()
	w.settle()
	rest := w.events
	for _, e := range want {
		i := slices.Index(rest, e)
		if i < 0 {
			w.Fatalf("events\n\t%s\nhave no %q, or not in that order", strings.Join(w.events, "\n\t"), e)
		}
		rest = rest[i+1:]
	}
}

// The script lets workers do these.

func (w *world) ready(name string) { w.Helper(); close(w.worker(name).readyc); w.settle() }

// leaves lets a worker leave and live on.
func (w *world) leaves(name string) { w.Helper(); close(w.worker(name).leftc); w.pass(lastMoment) }

// finishes lets a worker that drains have nothing left to do, and live on.
func (w *world) finishes(name string) {
	w.Helper()
	w.inOrder()
	close(w.worker(name).nothing)
	w.settle()
}

func (w *world) mute(name string, mute bool) { w.Helper(); w.inOrder(); w.worker(name).mute = mute }

// exitsAlone ends the first process of a worker, of whose group others are left.
func (w *world) exitsAlone(name string, exit Exit, rest ...int) {
	w.Helper()
	w.worker(name).leave(rest)
	w.worker(name).end(exit)
	w.pass(restDelay)
}

// restEnds lets those end, too.
func (w *world) restEnds(name string) {
	w.Helper()
	w.worker(name).leave(nil)
	w.pass(maxRestPoll)
}

func (w *world) exits(name string, code int) {
	w.Helper()
	w.worker(name).end(Exit{Code: code})
	w.settle()
}

func (w *world) worker(name string) *fake {
	w.Helper()
	for _, f := range w.fakes {
		if f.name == name {
			return f
		}
	}
	w.Fatalf("there is no worker %s", name)
	return nil
}

// call is a method of the supervisor that may wait.
type call struct {
	w   *world
	err chan error
}

func (w *world) reload() *call { return w.reloadWith(context.Background()) }

func (w *world) reloadWith(ctx context.Context) *call {
	c := &call{w, make(chan error, 1)}
	go func() { c.err <- w.s.Reload(ctx) }()
	w.settle()
	return c
}

func (c *call) waits() {
	c.w.Helper()
	c.w.settle()
	if len(c.err) > 0 {
		c.w.Fatalf("call has returned %v, want it to wait", <-c.err)
	}
}

// fails returns the error that the call has returned.
func (c *call) fails() error {
	c.w.Helper()
	err := c.result()
	if err == nil {
		c.w.Fatal("call has succeeded, want an error")
	}
	return err
}

func (c *call) succeeds() {
	c.w.Helper()
	if err := c.result(); err != nil {
		c.w.Fatal(err)
	}
}

func (c *call) result() error {
	c.w.Helper()
	c.w.settle()
	select {
	case err := <-c.err:
		return err
	default:
		c.w.Fatal("call has not returned")
		return nil
	}
}

// ends wants Run to have returned.
func (w *world) ends() error {
	w.Helper()
	return (&call{w, w.ran}).result()
}

func (w *world) runs() { w.Helper(); (&call{w, w.ran}).waits() }

// The supervisor does these to the world.

func (w *world) write(format string, args ...any) {
	w.order.Lock()
	defer w.order.Unlock()
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

func (w *world) newLink(seat Seat) (Link, error) {
	w.inOrder()
	if w.linkErr != nil {
		w.write("no link for %d", seat.Slot)
		return nil, w.linkErr
	}
	w.order.Lock()
	defer w.order.Unlock()
	f := &fake{
		w:       w,
		name:    fmt.Sprintf("%d%c", seat.Slot, 'a'+w.made[seat.Slot]),
		seat:    seat,
		pid:     1 + len(w.fakes),
		readyc:  make(chan struct{}),
		leftc:   make(chan struct{}),
		nothing: make(chan struct{}),
		exit:    make(chan Exit, 1),
	}
	w.made[seat.Slot]++
	w.fakes = append(w.fakes, f)
	return f, nil
}

func (w *world) start(spec Spec) (Process, error) {
	f := w.started(spec)
	f.spec = spec
	if w.startErr != nil {
		w.write("%v cannot start", f)
		f.over = true
		return nil, w.startErr
	}
	w.write("%v starts", f)
	return f, nil
}

// started returns the worker that is to be started: its link has said who it is.
func (w *world) started(spec Spec) *fake {
	w.order.Lock()
	defer w.order.Unlock()
	return w.fakes[slices.IndexFunc(w.fakes, func(f *fake) bool { return slices.Contains(spec.Env, "LINK="+f.name) })]
}

func (w *world) Resize(n int) {
	w.write("resize %d", n)
	for len(w.table) < n {
		w.table = append(w.table, nil)
	}
	w.table = w.table[:n]
}

func (w *world) Fill(slot int, link Link) {
	f := link.(*fake)
	w.write("fill %v", f)
	if f.seat.Slot != slot || f.draining {
		w.Errorf("slot %d was filled with %v; draining: %v", slot, f, f.draining)
	}
	w.table[slot] = f
}

func (w *world) Empty(slot int) {
	w.write("empty %d", slot)
	w.table[slot] = nil
}

var kinds = [...]string{"started", "start failed", "ready", "not ready", "left", "hung", "answers", "draining", "terminated",
	"killed", "exited", "reloading", "reloaded", "reload failed", "scaled", "standby", "restored", "gone", "lingering", "unhealthy", "healthy",
	"recycled", "gave up"}

// hear writes an event down as its kind, whom it is about, and its details.
func (w *world) hear(e Event) {
	w.order.Lock()
	defer w.order.Unlock()
	line := kinds[e.Kind]
	switch {
	case e.Kind == Scaled:
		line += fmt.Sprint(" ", e.Slots)
	case e.Slot == -1:
		line += fmt.Sprint(" ", e.Generation)
	case e.PID > 0:
		line += " " + w.fakes[e.PID-1].name
	}
	if e.Kind == WorkerExited {
		line += " " + e.Exit.String()
	}
	if len(e.Rest) > 0 {
		line += fmt.Sprint(" rest ", e.Rest)
	}
	if e.Err != nil {
		line += ": " + e.Err.Error()
	}
	w.events = append(w.events, line)
}

// fake is a worker, its process and its link in one. It obeys nothing but SIGKILL,
// and ends when the script says so.
type fake struct {
	w             *world
	name          string
	seat          Seat
	pid           int
	spec          Spec
	readyc, leftc chan struct{}
	nothing       chan struct{} // is left to finish
	exit          chan Exit
	rest          []int // of its group, when it has ended
	over          bool  // it has ended, or was never started
	unkillable    bool
	draining      bool
	mute          bool // does not answer pings
	begun, heeds  bool // serves the clients of an empty slot; ends if it has not, and is to drain
	pings         int
	closed        int // how often its link was closed
}

var errLeft = errors.New("had enough")

func (f *fake) String() string {
	if f == nil {
		return "-"
	}
	return f.name
}

func (f *fake) end(exit Exit) {
	if !f.over {
		f.over = true
		f.exit <- exit
	}
}

func (f *fake) Finished() <-chan struct{} { return f.nothing }

func (f *fake) PID() int   { return f.pid }
func (f *fake) Wait() Exit { return <-f.exit }

func (f *fake) Await() Exit {
	exit := <-f.exit
	f.exit <- exit
	return exit
}

// Rest implements Process. SIGKILL ends those, too.
func (f *fake) Rest() []int {
	f.w.order.Lock()
	defer f.w.order.Unlock()
	return f.rest
}

func (f *fake) leave(rest []int) {
	f.w.order.Lock()
	defer f.w.order.Unlock()
	f.rest = rest
}

func (f *fake) Signal(sig syscall.Signal) {
	f.w.write("%v %s", f, map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGKILL: "KILL"}[sig])
	if sig == syscall.SIGKILL && !f.unkillable {
		f.leave(nil)
		f.end(Exit{Code: -1, Signal: "killed"})
	}
}

func (f *fake) Files() []*os.File                { return []*os.File{os.Stdin} }
func (f *fake) Env(func(string) string) []string { return []string{"LINK=" + f.name} }

func (f *fake) Launch(command []string) []string { return append([]string{"launch"}, command...) }

func (f *fake) Started(p Process) {
	if p != f {
		f.w.Errorf("%v is told of another process", f)
	}
}

func (f *fake) Begun() bool            { return f.begun }
func (f *fake) Heeds() bool            { return f.heeds }
func (f *fake) Ready() <-chan struct{} { return f.readyc }
func (f *fake) Left() <-chan struct{}  { return f.leftc }
func (f *fake) Err() error             { return errLeft }

func (f *fake) Ping() bool {
	f.w.inOrder()
	f.pings++
	return !f.mute
}

func (f *fake) DrainsGroup() bool { return !f.w.drainsFirst }

func (f *fake) Save(*reexec.Bundle) (any, error) { return nil, ErrNotKept }
func (f *fake) Resume()                          {}

func (f *fake) Drain() {
	if !f.draining {
		f.draining = true
		f.w.write("%v drains", f)
	}
}

func (f *fake) Close() {
	if !f.over && !f.unkillable {
		f.w.Errorf("the link of %v was closed while its process runs", f)
	}
	if f.w.closing != nil {
		<-f.w.closing
	}
	f.w.order.Lock()
	defer f.w.order.Unlock()
	f.closed++
}

// output is that of a fake.
type output struct {
	inherited
	w *world
}

func (w *world) newOutput(Seat) (Output, error) {
	w.order.Lock()
	defer w.order.Unlock()
	w.outputs++
	return output{w: w}, nil
}

func (o output) LastWords(time.Duration) string { return o.w.words }
func (o output) Close() {
	o.w.order.Lock()
	defer o.w.order.Unlock()
	o.w.outputs--
}
