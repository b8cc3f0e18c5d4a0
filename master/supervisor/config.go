package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/reexec"
)

// Config says what to run and how patient to be. Start from DefaultConfig.
type Config struct {
	Command []string // the program and its arguments; required
	Env     []string // added to the environment of each worker, NAME=value; before all that Setting says
	Setting Setting  // where and with which variables the command runs
	Workers int      // number of slots at the start; at least 1
	Rights  Rights   // of workers

	MaxWorkers    int    // most slots that Scale may reach; 0: no limit
	MaxWorkersWhy string // for people: what limits them, and the remedy; may be empty
	// MaxProcesses bounds the worker processes that run at a time, those that drain
	// included: a reload that would start more fails. 0: no limit.
	MaxProcesses int

	ReadyTimeout time.Duration // from start to ready; then the worker is replaced; more than 0
	// Probation is how long a worker that replaces another one has to last. So long the other one stays
	// as it is, without new work, and if the new one ends, leaves or hangs it takes the slot back, and
	// the reload has failed. 0: it drains at once.
	Probation    time.Duration
	DrainTimeout time.Duration // for workers that were replaced; then SIGTERM; 0: at once
	// DrainSpread is over how long the ends of DrainTimeout are spread, by slot: it ends by so much earlier at most. 0: not at all.
	DrainSpread time.Duration
	// MaxDraining is how many workers of a slot may linger and drain at a time; of more the oldest get SIGTERM. 0: no limit.
	MaxDraining int
	StopTimeout time.Duration // the same after Stop
	KillTimeout time.Duration // from SIGTERM to SIGKILL; 0: at once

	// LingerUntil says until when a worker that was replaced for good, at that time, is to be left as it is, in no slot,
	// since its clients may come back to it. It is asked then, and again at each time that it returns; at one that is not in
	// the future the worker drains. It does so in any case when DrainTimeout is over, which begins with the replacement and
	// has no time for more then. LingerUntil is called in the loop, and must not wait. nil: nobody lingers.
	LingerUntil func(link Link, replaced time.Time) time.Time

	// Watchdog is how long a worker that serves may leave pings unanswered (Link.Ping);
	// then that is told, and with ReplaceHung the worker is killed and replaced. 0: nobody is asked.
	// The time is counted in quarters, and what is left of the one that has begun is added.
	Watchdog    time.Duration
	ReplaceHung bool

	// Health says how workers are asked whether they are healthy.
	Health Health

	// MaxMemory is how many bytes the process group of a worker may have, as Memory tells, and MaxAge how old a worker may be, before it is
	// recycled: one slot at a time, another worker takes its place. 0: no limit. Memory may take its time, and returns 0 if it does not know; nil:
	// pgroup.Memory.
	MaxMemory int64
	MaxAge    time.Duration
	Memory    func(pgid int) int64

	// MaxRestarts is how many workers of a slot in a row may die young and be replaced. When the next one does, too, all workers are told
	// to finish, and Run returns ErrGaveUp. 0: any number.
	MaxRestarts int

	// A worker that ends within MinUptime of being ready died young. The first
	// is replaced at once, the next ones after BackoffMin, doubling to
	// BackoffMax, until one has lived longer. A MinUptime of 0 means that none
	// dies young once it was ready. Whatever it is, a slot gets no more than one worker in BackoffMin,
	// except for the first that dies young.
	MinUptime  time.Duration
	BackoffMin time.Duration
	BackoffMax time.Duration

	// Probe asks a worker that is ready according to its link whether it really is, and
	// returns nil then. It must return when ctx ends: when the worker has ended, or its
	// ReadyTimeout is over. nil: the link alone decides.
	Probe func(context.Context, Seat) error

	// NewLink, NewOutput and Start have a goroutine of their own, and may take their time. As a rule they are called
	// for one worker after the other, but beside one that takes long.
	NewLink func(Seat) (Link, error)    // required
	Slots   Slots                       // told of every change; required
	Start   func(Spec) (Process, error) // nil: a process of this machine (StartProcess)
	Adopt   func(pid int) Process       // for one that the program before has started (Resume); nil: AdoptProcess

	// NewOutput says where a worker writes. nil: where the master does.
	NewOutput func(Seat) (Output, error)

	// NewNotices makes what a worker says of itself by sd_notify heard; nil: nobody hears it. With NeedsNotice a worker
	// is ready only when it has said so, too. RestoreNotices does the same for what Notices.Save returned.
	NewNotices     func() (Notices, error)
	NeedsNotice    bool
	RestoreNotices func(pid int, state json.RawMessage) (Notices, error)

	// Resume has what the program before has left of its supervisor (Save), whose workers go on, and
	// RestoreLink makes the link of a worker, by its pid, of what Link.Save returned there. nil: nothing.
	Resume      *reexec.Bundle
	RestoreLink func(Seat, int, json.RawMessage) (Link, error)
	// RestoreOutput does the same for what Output.Save returned. nil: what such workers write is lost.
	RestoreOutput func(seat Seat, pid int, state json.RawMessage) (Output, error)

	// OnEvent is told of all that happens, in order, by a goroutine of its own: it may take its time, but if more than
	// maxReports wait for it, further ones are left out. OnEventInLoop is told by Run itself, before anything comes
	// of the event, and must not wait. nil: nobody.
	OnEvent, OnEventInLoop func(Event)

	Logger      hclog.Logger // nil: none
	LogNotReady []any        // keys and values that go with the line of a worker that is not ready in time
}

// DefaultConfig has everything but Command, Workers, NewLink and Slots.
func DefaultConfig() Config {
	return Config{
		ReadyTimeout: 60 * time.Second,
		Health:       DefaultHealth(),
		Probation:    2 * time.Second,
		DrainTimeout: time.Hour,
		StopTimeout:  30 * time.Second,
		KillTimeout:  5 * time.Second,
		MinUptime:    10 * time.Second,
		BackoffMin:   100 * time.Millisecond,
		BackoffMax:   10 * time.Second,
	}
}

// Validate says what is missing or out of range.
func (c *Config) Validate() error {
	switch {
	case len(c.Command) == 0 || c.Command[0] == "":
		return errors.New("supervisor: no command to run")
	case c.MaxWorkers < 0:
		return fmt.Errorf("supervisor: at most %d workers, want 0 for no limit or more", c.MaxWorkers)
	case c.MaxProcesses < 0:
		return fmt.Errorf("supervisor: at most %d processes, want 0 for no limit or more", c.MaxProcesses)
	case c.checkWorkers(c.Workers) != nil:
		return c.checkWorkers(c.Workers)
	case c.NewLink == nil || c.Slots == nil:
		return errors.New("supervisor: NewLink and Slots are required")
	case c.ReadyTimeout <= 0:
		return fmt.Errorf("supervisor: ready timeout %v, want more than 0", c.ReadyTimeout)
	case c.DrainTimeout < 0 || c.StopTimeout < 0 || c.KillTimeout < 0 || c.MinUptime < 0 || c.Watchdog < 0 || c.Probation < 0 || c.MaxAge < 0:
		return errors.New("supervisor: a timeout is negative")
	case c.DrainSpread < 0 || c.DrainSpread > c.DrainTimeout:
		return fmt.Errorf("supervisor: drains end within %v, want 0 to the drain timeout, %v", c.DrainSpread, c.DrainTimeout)
	case c.MaxDraining < 0:
		return fmt.Errorf("supervisor: %d workers of a slot may drain, want 0 for no limit or more", c.MaxDraining)
	case c.MaxMemory < 0 || c.MaxRestarts < 0:
		return fmt.Errorf("supervisor: at most %d bytes of memory and %d restarts, want 0 for no limit or more", c.MaxMemory, c.MaxRestarts)
	case c.Health.validate() != nil:
		return c.Health.validate()
	case c.BackoffMin <= 0 || c.BackoffMax < c.BackoffMin:
		return fmt.Errorf("supervisor: backoff from %v to %v, want more than 0 and growing", c.BackoffMin, c.BackoffMax)
	}
	return nil
}

func (c *Config) checkWorkers(n int) error {
	if n < 1 {
		return fmt.Errorf("supervisor: %d workers, want at least 1", n)
	}
	if c.MaxWorkers > 0 && n > c.MaxWorkers {
		why := ""
		if c.MaxWorkersWhy != "" {
			why = ": " + c.MaxWorkersWhy
		}
		return fmt.Errorf("supervisor: %d workers, want at most %d%s", n, c.MaxWorkers, why)
	}
	return nil
}

// Seat is a worker's place: which slot it is for, of how many, and which reload
// started it (the first generation is 1).
type Seat struct {
	Slot, Slots, Generation int
}

// Slots is told which link is in which slot. It is called from Run and must not wait: system calls that cannot
// are all that is right here.
type Slots interface {
	// Resize sets the number of slots. New ones are empty.
	Resize(n int)
	// Fill puts a link in a slot in place of what was there.
	Fill(slot int, link Link)
	// Empty takes the link out of a slot.
	Empty(slot int)
}
