package kernelroute

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/link/listening"
	"github.com/handfast/handfast/master/pgroup"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/sockdiag"
)

// Group is what a Route needs of the listeners of one address. The methods are those of *reuseport.Group.
type Group interface {
	Addr() *net.TCPAddr
	Bound() *net.TCPAddr
	Members() int
	Grow(members int) error
	Steer(members []int) error
	Listener(i int) *os.File
	Absent() *os.File // nil: slots have no addresses of their own
	Queue(i int) (waiting, limit int, err error)
	Clean(i int, blocking bool) error
	Repair() (reuseport.Repaired, error)
	OnlyIPv4() (Group, error) // nil: it is none of both families
	StopHandshakes() error
	Came() []uint64 // by slot; nil: nobody counts
	Save(*reexec.Bundle) reuseport.Saved
	SaveCounting(*reexec.Bundle) *reuseport.SavedProgram
	Close() error
}

// kernelGroup is the group that the kernel knows.
type kernelGroup struct{ *reuseport.Group }

// OnlyIPv4 implements Group.
func (g kernelGroup) OnlyIPv4() (Group, error) {
	four, err := g.Group.OnlyIPv4()
	if err != nil || four == nil {
		return nil, err
	}
	return kernelGroup{four}, nil
}

// Acceptor is what a Route needs of a *balancer.Balancer.
type Acceptor interface {
	AcceptShared(ctx context.Context, listener *os.File) error
	RefuseOverdue(tick time.Duration, overdue func(waiting int) int) func(context.Context, *os.File) error
	TakeBacklog(listener *os.File) error
	NoteOpen(clients []netip.Addr)
	Shutdown(context.Context)
}

var _ Acceptor = (*balancer.Balancer)(nil)

// Holder is a process that has a listener open.
type Holder interface{ Holds() bool }

// Surroundings are what a Route asks of the machine. Tests have other answers.
type Surroundings struct {
	// Listen opens a group for slots whose clients come to these members, of so many.
	Listen func(ctx context.Context, address string, config hash.Config, memberOf []int, members int) (Group, error)
	// FindHolder finds a process of a worker that has one of the listeners open. The error says that nobody knows; it matches
	// fs.ErrPermission if processes must not be looked into.
	FindHolder func(pid int, listeners []*os.File) (Holder, error)
	// Owners returns the processes that have a stranger's listener, if they can be seen.
	Owners func(reuseport.Stranger) []reuseport.Owner
	// List returns the sockets with a local port that are in one of the states.
	List func(port uint16, states ...sockdiag.State) ([]sockdiag.Socket, error)
}

// theMachine has groups count that are given one of the programs, which it borrows.
func theMachine(programs *reuseport.Programs) Surroundings {
	return Surroundings{
		Listen: func(ctx context.Context, address string, config hash.Config, memberOf []int, members int) (Group, error) {
			g, err := reuseport.ListenFor(ctx, address, config, memberOf, members, programs)
			if err != nil {
				return nil, err
			}
			return kernelGroup{g}, nil
		},
		FindHolder: findHolder,
		Owners:     reuseport.Stranger.Owners,
		List:       sockdiag.List,
	}
}

// findHolder looks among all processes if it has to.
func findHolder(pid int, listeners []*os.File) (Holder, error) {
	var sockets []uint64
	for _, listener := range listeners {
		inode, err := sock.Inode(listener)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, inode)
	}
	found, err := listening.FindHolder(append([]int{pid}, pgroup.Living(pid)...), sockets)
	if err == nil && !found.Holds() { // a daemon may have left family and group
		found, _ = listening.FindHolder(pgroup.All(), sockets) // of other users it is not
	}
	return found, err
}
