package steer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
)

// ErrNotListening: somebody who shares the slot's listener has called shutdown(2) on it. Its
// clients, and those of another slot, go astray until Mend.
var ErrNotListening = errors.New("steer: the listener was shut down by a process that shares it")

// Group is the listeners of one address, one for each slot, and the program by which the
// kernel picks one for each client. Its methods may be called at the same time.
type Group struct {
	config  hash.Config
	network string // as package net has it
	addr    *net.TCPAddr
	bound   unix.Sockaddr // the same, for the kernel

	mu      sync.Mutex
	members []*os.File // by slot, all that were ever opened
	places  []int      // by slot: where its socket is in the kernel's group
	slots   int        // of which the program picks
	silent  *os.File   // the socket that gets everybody after Silence
}

// Listen opens a group of 1 to MaxSlots slots. The address is as in master.Listen: ":80" is
// all addresses of both families, "0.0.0.0:80" all of IPv4, "[::]:80" all of IPv6; with port
// 0 the kernel chooses one. ctx bounds the lookup of a host's name.
//
// No client sees a part of the group: until it is complete, whoever wants to connect gets no
// answer and tries again (after a second, on Linux). And no process but this one has a part in
// it: if another listens on the address, even with SO_REUSEPORT, the error matches
// syscall.EADDRINUSE and says which. Such are workers of a master that was killed.
func Listen(ctx context.Context, address string, config hash.Config, slots int) (*Group, error) {
	return listenAlone(ctx, address, config, slots, silence)
}

// ListenFree is Listen also for an address that this machine does not have yet (IP_FREEBIND).
func ListenFree(ctx context.Context, address string, config hash.Config, slots int) (*Group, error) {
	return listenAlone(ctx, address, config, slots, func(fd int) error { return errors.Join(fdpass.SetFreebind(fd), silence(fd)) })
}

func listenAlone(ctx context.Context, address string, config hash.Config, slots int, prepare func(fd int) error) (*Group, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if err := checkSlots(slots); err != nil {
		return nil, err
	}
	// The first listens for itself alone, which fails if there is any other, and then
	// lets others join. Two masters that start at once both bind, but only one listens.
	return open(ctx, fdpass.ListenNetwork(address), address, config, slots, prepare)
}

// open opens a group. prepare sees its first socket before that is bound.
func open(ctx context.Context, network, address string, config hash.Config, slots int, prepare func(fd int) error) (*Group, error) {
	first, addr, err := listen(ctx, network, address, 0, prepare)
	if err != nil {
		return nil, err
	}
	g := &Group{config: config, network: network, addr: addr, members: []*os.File{first}, places: []int{0}}
	if err := g.start(slots); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// OnlyIPv4 opens a group for IPv4 alone beside one of both families, of which it takes all
// clients of IPv4 from now on. It returns nil if g is none of both.
func (g *Group) OnlyIPv4() (*Group, error) {
	if g.network != "tcp" || !g.addr.IP.IsUnspecified() || g.addr.IP.To4() != nil {
		return nil, nil
	}
	g.mu.Lock()
	slots := g.slots
	g.mu.Unlock()
	address := net.JoinHostPort(net.IPv4zero.String(), strconv.Itoa(g.addr.Port))
	return open(context.Background(), "tcp4", address, g.config, slots, shareSilently)
}

// another opens the listener of one more slot.
func (g *Group) another(silent bool) (*os.File, error) {
	prepare := share
	if silent {
		prepare = shareSilently
	}
	free := false
	control(g.members[0], func(fd int) error {
		n, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND)
		free = n != 0
		return err
	})
	if free {
		alone := prepare
		prepare = func(fd int) error { return errors.Join(fdpass.SetFreebind(fd), alone(fd)) }
	}
	file, _, err := listen(context.Background(), g.network, g.addr.String(), len(g.members), prepare)
	return file, err
}

func shareSilently(fd int) error { return errors.Join(share(fd), silence(fd)) }

// start opens the other listeners, attaches the program, and lets clients in.
func (g *Group) start(slots int) error {
	err := control(g.members[0], func(fd int) (err error) {
		if g.bound, err = unix.Getsockname(fd); err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		return share(fd)
	})
	if err != nil {
		return err
	}
	// Two at least, so that there is a program from the start: a socket that is alone is no
	// group, and has none.
	if err := g.grow(max(slots, 2), true); err != nil {
		return err
	}
	if err := g.resize(slots); err != nil {
		return err
	}
	for _, member := range g.members {
		if err := control(member, unsilence); err != nil {
			return err
		}
	}
	return nil
}

// Addr returns the address that the group listens on, with its port.
func (g *Group) Addr() *net.TCPAddr { return g.addr }

// Grow opens the listeners of so many slots, 1 to MaxSlots, if there are not as many yet. No
// client is given to them before Resize: their workers can start.
//
// Listeners are opened by the user whom the first ones belong to, else they are another group's
// (EADDRINUSE): see Chown.
func (g *Group) Grow(slots int) error {
	if err := checkSlots(slots); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grow(slots, false)
}

func (g *Group) grow(slots int, silent bool) error {
	for len(g.members) < slots {
		file, err := g.another(silent)
		if err != nil {
			return err
		}
		g.places = append(g.places, len(g.members))
		g.members = append(g.members, file)
	}
	return nil
}

// Chown gives the listeners to a user, who may then open more of them (Grow).
func (g *Group) Chown(uid, gid int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, member := range g.members {
		errs = append(errs, control(member, func(fd int) error { return os.NewSyscallError("fchown", unix.Fchown(fd, uid, gid)) }))
	}
	return errors.Join(errs...)
}

// Resize changes the number of slots, 1 to MaxSlots, in one step: about 1/N of the clients
// move, as package hash says. The listeners of slots that are not in use any more stay open:
// no client is given to them, those in their queues still wait to be accepted, and when the
// group grows again they are back.
func (g *Group) Resize(slots int) error {
	if err := g.Grow(slots); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.resize(slots)
}

func (g *Group) resize(slots int) error {
	if err := g.steer(g.places[:slots]); err != nil {
		return err
	}
	g.slots = slots
	return nil
}

// steer attaches the program for slots at these places.
func (g *Group) steer(places []int) error {
	return control(g.members[0], func(fd int) error { return attach(fd, program(g.config, places)) })
}

// Silence answers no first packet of a handshake any more, as if it were lost, while handshakes
// that are under way go on: the program picks a socket that is silent. It is for the end:
// afterwards a group is only closed. (A socket's filter could do that too, but may need a
// privilege.)
func (g *Group) Silence() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.silent != nil {
		return nil
	}
	file, err := g.another(true)
	if err != nil {
		return err
	}
	g.silent = file
	place := uint32(len(g.members))
	return control(g.members[0], func(fd int) error { return attach(fd, []bpf.Instruction{bpf.RetConstant{Val: place}}) })
}

// Listener returns the listener of a slot, also of one that is not in use any more. The caller
// borrows it: it is open until the group is closed. It is nil if there never was such a slot.
//
// It is non-blocking, and so is every copy of it: the flag is the socket's own. Neither Fd nor
// os/exec's ExtraFiles change that, as they do with the File of a net.TCPListener (Go issue
// 43894): os.File clears O_NONBLOCK only when it was set by package os or net, and here it was set
// behind its back. So it is not in Go's poller either, where every client would wake this
// process. Who wants to accept here makes a net.FileListener of it and closes that again; who
// has workers that need a blocking listener clears the flag with unix.SetNonblock.
func (g *Group) Listener(slot int) *os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slot < 0 || slot >= len(g.members) {
		return nil
	}
	return g.members[slot]
}

// Queue tells how many connections wait in a slot's listener to be accepted, and how many may:
// beyond the limit, first packets get no answer. The limit is the system's (net.core.somaxconn)
// until somebody who shares the listener calls listen(2) with a smaller one. The error is
// ErrNotListening if it was shut down.
func (g *Group) Queue(slot int) (waiting, limit int, err error) {
	member := g.Listener(slot)
	if member == nil {
		return 0, 0, fmt.Errorf("steer: no slot %d", slot)
	}
	info, err := tcpInfo(member)
	if err != nil {
		return 0, 0, err
	}
	if info.State != unix.BPF_TCP_LISTEN {
		return 0, 0, ErrNotListening
	}
	return int(info.Unacked), int(info.Sacked), nil // of a listener (tcp_get_info)
}

// Mend makes listeners listen again that were shut down by a process that shares them, and
// returns their slots, none as a rule. Some servers do that when they stop; what waits in the
// queue is reset by it. It also undoes what else they may have done: a smaller queue, another
// program. Call it whenever a worker has left: if two listeners were shut down
// since, nobody knows the places of the others any more, and the error says so.
func (g *Group) Mend() ([]int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.silent != nil {
		return nil, nil // nobody is to come any more
	}
	var down []int
	for slot, member := range g.members {
		info, err := tcpInfo(member)
		if err != nil {
			return nil, err
		}
		if info.State != unix.BPF_TCP_LISTEN {
			down = append(down, slot)
		}
		if err := control(member, func(fd int) error { return listenAgain(fd, g.bound) }); err != nil {
			return nil, err
		}
	}
	for _, slot := range down {
		g.moveLast(slot)
	}
	if err := g.steer(g.places[:g.slots]); err != nil {
		return nil, err
	}
	if len(down) > 1 {
		return down, fmt.Errorf("steer: the listeners of slots %v were shut down by processes that share them; "+
			"clients may be given to other slots than theirs until the master is restarted", down)
	}
	return down, nil
}

// moveLast is what happens to places when a socket leaves the group and comes back: the last
// one takes its place, and it becomes the last (__reuseport_detach_sock, reuseport_add_sock).
func (g *Group) moveLast(slot int) {
	last := len(g.places) - 1
	for other, place := range g.places {
		if place == last {
			g.places[other] = g.places[slot]
		}
	}
	g.places[slot] = last
}

// Close closes the listeners. Those that a worker shares live on, at places of their own, so
// close a group when no worker is to get clients any more. Connections that wait where no
// worker shares are reset.
func (g *Group) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	if g.silent != nil {
		errs = append(errs, g.silent.Close())
	}
	for i := len(g.members) - 1; i >= 0; i-- { // from the last on, so that no place changes
		errs = append(errs, g.members[i].Close())
	}
	return errors.Join(errs...)
}

func checkSlots(slots int) error {
	if slots < 1 || slots > MaxSlots {
		return fmt.Errorf("steer: %d slots: want 1 to %d", slots, MaxSlots)
	}
	return nil
}
