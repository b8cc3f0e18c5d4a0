package supervisor

import (
	"errors"
	"os"

	"github.com/handfast/handfast/master/reexec"
)

// Link connects one worker process with whatever gives it work. The supervisor makes one per process,
// asks it nothing but this, and closes it. The methods are in the order of a worker's life. None may
// wait, except Close.
type Link interface {
	// Launch returns the command to start in place of the worker's: that of a program which prepares
	// its process and then becomes command (execve, so that the process stays the same), or command
	// itself.
	Launch(command []string) []string
	// Files and Env are what the process inherits: descriptors from 3 up and
	// variables. The link goes on owning the files. get returns the value that a variable has before.
	Files() []*os.File
	Env(get func(name string) string) []string
	// Started is called with the process before anything else is asked of the link.
	Started(Process)
	// Ready is closed when the worker can take work.
	Ready() <-chan struct{}
	// Ping asks the worker whether it still takes work, unless an answer is outstanding, and tells
	// whether there was a sign of it since the last time, or since it was ready. Of a worker that cannot answer
	// the sign is that it takes what waits for it, or that nothing does (Progress).
	Ping() (alive bool)
	// Left is closed when the worker takes no more work although its process
	// lives; Err then tells why. It drains, and its slot gets another.
	Left() <-chan struct{}
	Err() error
	// Drain tells the worker to finish what it has and to exit. It may be called again.
	Drain()
	// DrainsGroup tells whether Drain reaches all processes of the worker's group, as a signal
	// does, or the first one alone, which has the other end of the link.
	DrainsGroup() bool
	// Finished is closed some time after Drain, when the worker has nothing left to finish. A worker
	// that does not exit then by itself is ended. nil: the link cannot see that.
	Finished() <-chan struct{}
	// Save returns what the program that takes this one's place needs to know in order to go on with
	// the link, to be written as JSON, and keeps descriptors; or ErrNotKept. The worker was ready.
	// reexec.Lock is held, and whatever else moves the link must be at rest while that is.
	Save(*reexec.Bundle) (any, error)
	// Resume begins to move a link that was restored.
	Resume()
	// Close comes last and once: when the process has ended, was never started,
	// or hangs although it was killed. It has a goroutine of its own.
	Close()
}

// earlyLink is a Link whose worker can serve an empty slot's clients before it is known to be ready, since they come to what the worker before it had.
type earlyLink interface {
	// Begun tells whether it may do so now.
	Begun() bool
	// Heeds tells whether Drain ends a worker that has not begun. Begun may lag behind such a worker, which says that it is Ready before it begins: if
	// it had, and finishes, Ready is closed soon.
	Heeds() bool
}

// ErrNotKept: another program cannot go on with such a link.
var ErrNotKept = errors.New("supervisor: workers of this kind of link cannot be kept; use reload, or stop and start")

// noLink is that of a worker that was never ready and will not be.
type noLink struct{}

func (noLink) Launch(command []string) []string { return command }
func (noLink) Files() []*os.File                { return nil }
func (noLink) Env(func(string) string) []string { return nil }
func (noLink) Started(Process)                  {}
func (noLink) Ready() <-chan struct{}           { return nil }
func (noLink) Ping() bool                       { return true }
func (noLink) Left() <-chan struct{}            { return nil }
func (noLink) Err() error                       { return nil }
func (noLink) Drain()                           {}
func (noLink) DrainsGroup() bool                { return false }
func (noLink) Finished() <-chan struct{}        { return nil }
func (noLink) Save(*reexec.Bundle) (any, error) { return nil, nil }
func (noLink) Resume()                          {}
func (noLink) Close()                           {}
