// Package history decides whether what clients of handfast have seen can be, under what handfast promises. It knows nothing of the
// balancer: of handfast's packages only hash, which says where a client belongs.
//
// A History has what clients noted of each connection and request, what was done to handfast meanwhile (Deed), and which worker
// processes there were, as /proc shows them. All times are of one clock, since the history began. What is noted as the time of an
// instant is never earlier than the instant for what was seen (an answer, a death), and never later for what was begun
// (a connection, a request, a deed), so that "before" between two of them is certain. Check has one method for each promise, whose
// comment says how its window follows from it.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// Terms are under which handfast ran. Durations are in nanoseconds in JSON.
type Terms struct {
	Seed  uint64
	Route string
	Link  string
	Slots int // at the beginning

	Patience time.Duration // for an empty slot, before a 502: --retry-delay times --max-retries
	Drain    time.Duration // --drain-timeout
	Kill     time.Duration // --kill-timeout

	// Idle is how long a connection is kept after an answer by a worker that was replaced: a second by package worker. 0: for ever, by
	// servers that know nothing of handfast.
	Idle time.Duration

	// What handfast does not promise, and a trial has to assume of the machine.
	Start  time.Duration // a slot is empty at most for so long when its worker has died
	Leave  time.Duration // a replaced worker ends so soon after its last connection
	Answer time.Duration // a request that nobody hinders takes at most so much longer than it is asked to
	Slack  time.Duration // how late a process may do, and another one see, what is due
}

// Connection is one of a client's.
type Connection struct {
	ID        int
	Key       netip.Addr // the client's address
	Dial      time.Duration
	Connected time.Duration `json:",omitempty"` // 0: never
	Closed    time.Duration // by the client, or when it could not be made
	Err       string        `json:",omitempty"` // why it could not be made
	Requests  []Request     `json:",omitempty"`
}

// Request is one on a connection, and what came back.
type Request struct {
	Path  string
	Takes time.Duration // what the worker is asked to take
	Sent  time.Duration
	Done  time.Duration // the answer is complete, or there is none
	Err   string        `json:",omitempty"` // there is none, or part of one: how the connection ended
	Late  bool          `json:",omitempty"` // there is none, and the client waits no longer
	Read  int           // bytes of the answer

	Status                int        `json:",omitempty"`
	Slot, PID, Generation int        // of the worker, as it says; PID 0: it has not
	Client                netip.Addr // whom the worker has seen
}

// Process is a worker, as /proc shows it.
type Process struct {
	PID, Slot, Generation int
	Seen                  time.Duration // when it was there already
	Gone                  time.Duration `json:",omitempty"` // when it was there no more; 0: it was there at the end
}

// Deed is what was done to handfast.
type Deed struct {
	What       What
	From, To   time.Duration // at the earliest and at the latest
	PID        int           `json:",omitempty"` // Kill, Stop; 0 with Stop is the master
	Slot       int           `json:",omitempty"` // Replace
	Slots      int           `json:",omitempty"` // Scale
	Generation int           `json:",omitempty"` // Reload; 0: it had none
	Kills      int           `json:",omitempty"` // Memory: by the kernel
	Err        string        `json:",omitempty"` // it failed, as handfast says
}

// What was done.
type What string

// What is done.
const (
	Kill    What = "kill"    // SIGKILL
	Stop    What = "stop"    // SIGSTOP, and SIGCONT at the end
	Reload  What = "reload"  // all workers are replaced
	Replace What = "replace" // one slot's worker is
	Scale   What = "scale"   // until all slots are in use
	Upgrade What = "upgrade" // of the master's program
	Disk    What = "disk"    // is full
	Memory  What = "memory"  // is short
	Broken  What = "broken"  // is what workers are started from
	Clock   What = "clock"   // of the machine is set
	Calm    What = "calm"    // nothing is done from then to the end
	End     What = "end"     // handfast is told to stop, and has; Err: it does not, or it has ended before
)

// History is what there was. The order of its lists is of no account.
type History struct {
	Terms       Terms
	Connections []Connection
	Processes   []Process
	Deeds       []Deed
}

// line is one of a file, which has one of these.
type line struct {
	Terms      *Terms      `json:",omitempty"`
	Deed       *Deed       `json:",omitempty"`
	Process    *Process    `json:",omitempty"`
	Connection *Connection `json:",omitempty"`
}

// Write writes a history as lines of JSON.
func (h *History) Write(w io.Writer) error {
	buffer := bufio.NewWriter(w)
	out := json.NewEncoder(buffer)
	err := out.Encode(line{Terms: &h.Terms})
	for i := range h.Deeds {
		err = firstOf(err, out.Encode(line{Deed: &h.Deeds[i]}))
	}
	for i := range h.Processes {
		err = firstOf(err, out.Encode(line{Process: &h.Processes[i]}))
	}
	for i := range h.Connections {
		err = firstOf(err, out.Encode(line{Connection: &h.Connections[i]}))
	}
	return firstOf(err, buffer.Flush())
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// Read reads what Write has written.
func Read(r io.Reader) (*History, error) {
	h := new(History)
	for in := json.NewDecoder(r); ; {
		var l line
		if err := in.Decode(&l); err == io.EOF {
			return h, nil
		} else if err != nil {
			return nil, fmt.Errorf("history: %w", err)
		}
		switch {
		case l.Terms != nil:
			h.Terms = *l.Terms
		case l.Deed != nil:
			h.Deeds = append(h.Deeds, *l.Deed)
		case l.Process != nil:
			h.Processes = append(h.Processes, *l.Process)
		case l.Connection != nil:
			h.Connections = append(h.Connections, *l.Connection)
		}
	}
}
