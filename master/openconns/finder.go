package openconns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/handfast/handfast/master/sockdiag"
)

const (
	// fresh is how long an answer of the kernel serves other workers, too.
	fresh = 20 * time.Millisecond
	// still is how long a connection that waits for its client must have received and sent nothing to count
	// as merely kept alive.
	still = time.Second
)

// ErrHidden: processes of the worker must not be looked into, so it is not known whether it has
// connections. It is wrapped.
var ErrHidden = errors.New("openconns: its descriptors cannot be seen")

// states are the states of a connection that a process may still use.
var states = []sockdiag.State{sockdiag.Established, sockdiag.FinWait1, sockdiag.FinWait2, sockdiag.CloseWait, sockdiag.LastAck, sockdiag.Closing}

// Finder finds the connections of workers that listen on some ports. Its methods may be called at
// any time.
type Finder struct {
	ports func() []uint16

	mu    sync.Mutex
	asked time.Time // the kernel, last
	all   []sockdiag.Socket
}

// New makes a Finder for the local ports that a function returns. It is called each time: a worker may
// decide where clients come to.
func New(ports func() []uint16) *Finder { return &Finder{ports: ports} }

// Open tells whether the worker whose first process, and process group, is pid has a connection
// open. A connection in the queue of a listener does not count.
func (f *Finder) Open(pid int) (bool, error) {
	return f.has(pid, func(*sockdiag.Socket) bool { return true })
}

// Busy tells whether the worker has a connection that is not merely kept alive: bytes have come after the last
// ones went, or wait to be read or to be taken by the client, or something was received or sent within the
// last second.
func (f *Finder) Busy(pid int) (bool, error) { return f.has(pid, busy) }

func busy(s *sockdiag.Socket) bool {
	switch {
	case s.Unread > 0, s.Unsent > 0:
		return true
	case min(s.SinceReceived, s.SinceSent) < still:
		return true
	case s.SinceReceived == s.SinceSent: // an answer within the same tick of the kernel, or none yet
		return s.Received > 0 && s.Acked == 0
	default:
		return s.Received > 0 && s.SinceReceived < s.SinceSent
	}
}

// Heard tells whether the worker has a connection on which its client has sent something lately.
func (f *Finder) Heard(pid int, lately time.Duration) (bool, error) {
	return f.has(pid, func(s *sockdiag.Socket) bool { return s.Received > 0 && s.SinceReceived < lately })
}

// has tells whether a worker has one of the connections that count.
func (f *Finder) has(pid int, counts func(*sockdiag.Socket) bool) (bool, error) {
	all, err := f.connections()
	if err != nil {
		return false, err
	}
	inodes := make(map[uint64]struct{})
	for i := range all {
		if all[i].Accepted() && counts(&all[i]) {
			inodes[all[i].Inode] = struct{}{}
		}
	}
	if len(inodes) == 0 {
		return false, nil
	}
	var hidden error
	for _, pid := range family(pid) {
		found, err := holds(pid, inodes)
		if found {
			return true, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			hidden = fmt.Errorf("%w: process %d: %w", ErrHidden, pid, err)
		}
	}
	return false, hidden
}

// connections returns the kernel's answer, which may be a moment old.
func (f *Finder) connections() ([]sockdiag.Socket, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.asked) < fresh {
		return f.all, nil
	}
	var all []sockdiag.Socket
	ports := f.ports()
	slices.Sort(ports)
	for _, port := range slices.Compact(ports) {
		some, err := sockdiag.ListTraffic(port, states...)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	f.asked, f.all = time.Now(), all
	return all, nil
}

// someNames is how many descriptors are read from a folder at a time.
const someNames = 256

// holds tells whether a process has one of the sockets open.
func holds(pid int, inodes map[uint64]struct{}) (bool, error) {
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	file, err := os.Open(folder)
	if err != nil {
		return false, err
	}
	defer file.Close()
	for {
		names, err := file.Readdirnames(someNames)
		for _, name := range names {
			target, err := os.Readlink(folder + "/" + name)
			if errors.Is(err, fs.ErrPermission) {
				return false, err
			}
			if inode, ok := socket(target); ok && err == nil {
				if _, found := inodes[inode]; found {
					return true, nil
				}
			}
		}
		if err != nil { // io.EOF, or the process has ended
			return false, nil
		}
	}
}
