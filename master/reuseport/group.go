package reuseport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/hash"
)

var (
	// ErrNotListening: a process that has the member has called shutdown(2) on it. Its clients, and
	// those of another member, go astray until Repair.
	ErrNotListening = errors.New("reuseport: the listener was shut down by a process that shares it")
	// ErrSpoiled: what a process has set on the member cannot be undone. As a rule it has locked the
	// socket's filter (SO_LOCK_FILTER).
	ErrSpoiled = errors.New("reuseport: what a process that shared the listener has set on it cannot be undone (SO_LOCK_FILTER?)")
	// ErrStopped: nobody is to come any more (StopHandshakes).
	ErrStopped = errors.New("reuseport: the group takes no more handshakes")
)

// Group is the listeners of one address, its members, and the program by which the kernel picks
// one for each client. Members have numbers, from 0 on; which slot's clients come to which
// member is for Steer to say. Its methods may be called at the same time.
type Group struct {
	config  hash.Config
	network string        // as package net has it
	addr    *net.TCPAddr  // that its sockets are bound to
	bound   unix.Sockaddr // the same, for the kernel
	known   *net.TCPAddr  // by which it is known (sock.Listening)

	programs *Programs // borrowed; for another group beside this one
	counting *counting // nil: the program is the classic one

	mu       sync.Mutex
	settings settings   // of a member that no process has had
	anchor   *member    // which no process but this one has, and no slot's clients come to (Absent)
	members  []*member  // all that were ever opened
	sockets  []uint64   // inodes of the kernel's group, by place
	memberOf []int      // by slot: the member that its clients come to
	stopped  bool       // by StopHandshakes
	untold   []Stranger // of sockets: those that Repair has not told of yet
}

// member is one listener.
type member struct {
	file  *os.File
	inode uint64
}

// Listen opens a group of so many members, 1 to MaxSlots, that serve as many slots in this order.
// The address is as in balancer.Listen: ":80" is all addresses of both families, "0.0.0.0:80" all
// of IPv4, "[::]:80" all of IPv6; with port 0 the kernel chooses one. ctx bounds the lookup of a
// host's name.
//
// No client sees a part of the group: until it is complete, a client that connects gets no answer and tries
// again (after a second, on Linux). And no process but this one has a part in it: if another one listens on
// the address, even with SO_REUSEPORT, as workers do of a master that was killed, the error matches
// syscall.EADDRINUSE and names it.
func Listen(ctx context.Context, address string, config hash.Config, slots int) (*Group, error) {
	return ListenWith(ctx, address, config, slots, Options{})
}

// Options are what else a group may be given. The zero value has nothing.
type Options struct {
	// Prepare sees sockets before they are bound: fdpass.SetFreebind, sock.BindToLoopback, or both. Those that are opened later are likewise.
	Prepare func(fd int) error
	// Programs have one that counts (Came), and that can pick from more slots; the group borrows them. Where there is none left, and none
	// can be loaded, the group does without.
	Programs *Programs
}

// ListenWith is Listen with options.
func ListenWith(ctx context.Context, address string, config hash.Config, slots int, o Options) (*Group, error) {
	// The anchor listens for itself alone, which fails if there is any other socket, and then lets others
	// join. Two masters that start at once both bind, but only one listens.
	prepare := func(fd int) (err error) {
		if o.Prepare != nil {
			err = o.Prepare(fd)
		}
		return errors.Join(err, dropPackets(fd))
	}
	return open(ctx, fdpass.ListenNetwork(address), address, config, inOrder(max(slots, 0)), slots, o.Programs, prepare)
}

// ListenFor is Listen for slots whose clients come to these members, of so many, with Programs of ListenWith.
func ListenFor(ctx context.Context, address string, config hash.Config, at []int, members int, programs *Programs) (*Group, error) {
	return open(ctx, fdpass.ListenNetwork(address), address, config, at, members, programs, dropPackets)
}

// open opens a group. prepare sees its first socket before that is bound.
func open(ctx context.Context, network, address string, config hash.Config, at []int, members int, programs *Programs, prepare func(fd int) error) (g *Group, err error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	g = &Group{config: config, network: network, programs: programs, counting: programs.take()}
	defer func() {
		if err != nil {
			g.Close()
			g = nil
		}
	}()
	if err := errors.Join(g.checkSlots(len(at)), g.checkMembers(members)); err != nil {
		return g, err
	}
	first, addr, err := listen(ctx, network, address, "listener of nobody", prepare)
	if err != nil {
		return g, err
	}
	if g.anchor, err = newMember(first); err != nil {
		return g, err
	}
	g.addr, g.sockets = addr, []uint64{g.anchor.inode}
	return g, g.start(at, members)
}

// inOrder has each slot's clients come to the member of the same number.
func inOrder(slots int) []int {
	at := make([]int, slots)
	for slot := range at {
		at[slot] = slot
	}
	return at
}

// OnlyIPv4 opens a group for IPv4 alone beside one of both families, of which it takes all
// clients of IPv4 from now on: with as many members, to which the same slots' clients come. It
// returns nil if g is none of both.
func (g *Group) OnlyIPv4() (*Group, error) {
	if g.network != "tcp" || !g.addr.IP.IsUnspecified() || g.addr.IP.To4() != nil {
		return nil, nil
	}
	g.mu.Lock()
	at, members := slices.Clone(g.memberOf), len(g.members)
	g.mu.Unlock()
	address := net.JoinHostPort(net.IPv4zero.String(), strconv.Itoa(g.addr.Port))
	return open(context.Background(), "tcp4", address, g.config, at, members, g.programs, shareDropping)
}

// newMember takes ownership of a listener.
func newMember(file *os.File) (*member, error) {
	m := &member{file: file}
	err := control(file, func(fd int) (err error) {
		m.inode, err = sock.InodeFD(fd)
		return err
	})
	if err != nil {
		file.Close()
		return nil, err
	}
	return m, nil
}

func shareDropping(fd int) error { return errors.Join(share(fd), dropPackets(fd)) }

// start opens the members, attaches the program, and lets clients in.
func (g *Group) start(at []int, members int) error {
	if err := g.readAnchor(); err != nil {
		return err
	}
	if err := control(g.anchor.file, share); err != nil {
		return err
	}
	if err := g.grow(members, shareDropping); err != nil {
		return err
	}
	if err := g.steer(at); err != nil {
		return err
	}
	for _, m := range g.members {
		if err := control(m.file, passPackets); err != nil {
			return err
		}
	}
	return nil
}

// readAnchor finds out from our own listener what the members are like.
func (g *Group) readAnchor() error {
	return control(g.anchor.file, func(fd int) (err error) {
		g.settings = readSettings(fd)
		if g.bound, err = unix.Getsockname(fd); err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		g.known = g.addr
		if sock.IsBoundToLoopback(fd) {
			at, err := sock.Listening(fd)
			g.known = net.TCPAddrFromAddrPort(at)
			return err
		}
		return nil
	})
}

// Addr returns the address that the group listens on, with its port. It is the loopback address if that is all addresses of
// the loopback interface (sock.BindToLoopback).
func (g *Group) Addr() *net.TCPAddr { return g.known }

// Bound returns the address that the group's sockets are bound to: Addr, or all addresses.
func (g *Group) Bound() *net.TCPAddr { return g.addr }

// Members returns how many there are.
func (g *Group) Members() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.members)
}

// Grow opens members until there are so many. No client comes to them before Steer: their
// workers can start.
//
// The user must be the one that the first listeners belong to, else the new ones are of another group
// (EADDRINUSE): see Chown.
func (g *Group) Grow(members int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped && len(g.members) < members {
		return ErrStopped
	}
	return g.grow(members, share)
}

// grow opens members. prepare sees their sockets before they are bound.
func (g *Group) grow(members int, prepare func(fd int) error) error {
	alone := prepare
	prepare = func(fd int) error { return errors.Join(g.settings.prepare(fd), alone(fd)) }
	for len(g.members) < members {
		g.syncSockets() // sockets that have joined since are before the new one
		file, _, err := listen(context.Background(), g.network, g.addr.String(), fmt.Sprintf("listener %d", len(g.members)), prepare)
		if err != nil {
			return err
		}
		m, err := newMember(file)
		if err != nil {
			return err
		}
		g.members = append(g.members, m)
		g.sockets = append(g.sockets, m.inode)
	}
	return nil
}

// Chown gives the listeners to a user. A process of that user may then open more of them (Grow).
func (g *Group) Chown(uid, gid int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, m := range g.all() {
		errs = append(errs, control(m.file, func(fd int) error { return os.NewSyscallError("fchown", unix.Fchown(fd, uid, gid)) }))
	}
	return errors.Join(errs...)
}

// all returns the anchor, if there is one yet, and the members.
func (g *Group) all() []*member {
	if g.anchor == nil {
		return g.members
	}
	return append([]*member{g.anchor}, g.members...)
}

// Steer has the clients of each slot come to a member: those of slot i to members[i], of 1 to
// MaxSlots slots. All changes in one step. Where the number of slots changes, about 1/N of the
// clients move, as package hash says. A connection that waits in the queue of a member, or whose handshake is
// under way, stays with it.
func (g *Group) Steer(members []int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.checkSlots(len(members)); err != nil {
		return err
	}
	for _, i := range members {
		if i < 0 || i >= len(g.members) {
			return fmt.Errorf("reuseport: no member %d of %d", i, len(g.members))
		}
	}
	if g.stopped {
		return nil
	}
	return g.steer(slices.Clone(members))
}

func (g *Group) steer(at []int) error {
	before := g.memberOf
	g.memberOf = at
	if err := g.attach(); err != nil {
		g.memberOf = before
		return err
	}
	return nil
}

// attach attaches the program for the members that slots' clients come to.
func (g *Group) attach() error {
	places := make([]int, len(g.memberOf))
	for slot, i := range g.memberOf {
		places[slot] = slices.Index(g.sockets, g.members[i].inode)
	}
	answer, absent := dropPackets, slices.Index(g.sockets, g.anchor.inode)
	if g.config.Slots.IsValid() {
		answer = passPackets
	}
	return control(g.anchor.file, func(fd int) error {
		if g.counting != nil {
			g.counting.steer(g.config, places, absent)
			return errors.Join(g.counting.attach(fd), answer(fd))
		}
		return errors.Join(attach(fd, program(g.config, places, absent)), answer(fd))
	})
}

// Came returns how many handshakes have begun for each slot, of hash.MaxSlots; nil if nobody counts. A first packet that comes again
// since nobody has answered the one before counts again; what comes to slots' addresses that are not there does not count.
func (g *Group) Came() []uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counting == nil {
		return nil
	}
	return g.counting.came()
}

// MaxSlots returns from how many slots the group's program can pick.
func (g *Group) MaxSlots() int {
	if g.counting != nil {
		return g.counting.slots
	}
	return MaxSlots
}

// StopHandshakes answers no first packet of a handshake any more, as if it were lost, while handshakes
// that are under way go on: the program picks the anchor. It is for the end:
// afterwards a group is only closed. (A socket's filter could do that too, but may need a
// privilege.)
func (g *Group) StopHandshakes() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	place := uint32(slices.Index(g.sockets, g.anchor.inode))
	return control(g.anchor.file, func(fd int) error {
		return errors.Join(dropPackets(fd), attach(fd, []bpf.Instruction{bpf.RetConstant{Val: place}}))
	})
}

// Listener returns a member. The caller borrows it: it is open until the group is closed. It is
// nil if there never was such a member.
//
// It is non-blocking, and so is every copy of it: the flag is the socket's own. Neither Fd nor
// os/exec's ExtraFiles change that, as they do with the File of a net.TCPListener (Go issue
// 43894): os.File clears O_NONBLOCK only when it was set by package os or net, and here it was set
// behind its back. So it is not in Go's poller either, where every client would wake this
// process. To accept in this process, make a net.FileListener of it, and close that again. For workers that need
// a blocking listener, clear the flag with unix.SetNonblock.
func (g *Group) Listener(i int) *os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i < 0 || i >= len(g.members) {
		return nil
	}
	return g.members[i].file
}

// Absent returns the listener to which clients come that want a slot which is not there, by its own address
// (hash.Config.Slots); nil if slots have none. The caller borrows it, and resets what it accepts there: at the first packet the
// kernel can only be made to drop it, which clients would take for a loss. It is non-blocking.
func (g *Group) Absent() *os.File {
	if !g.config.Slots.IsValid() {
		return nil
	}
	return g.anchor.file
}

// Queue tells how many connections wait in a member to be accepted, and how many may: beyond the
// limit, first packets get no answer. The limit is the system's (net.core.somaxconn) until
// a process that shares the listener calls listen(2) with a smaller one. The error is
// ErrNotListening if it was shut down.
func (g *Group) Queue(i int) (waiting, limit int, err error) {
	file := g.Listener(i)
	if file == nil {
		return 0, 0, fmt.Errorf("reuseport: no member %d", i)
	}
	info, err := tcpInfo(file)
	if err != nil {
		return 0, 0, err
	}
	if info.State != unix.BPF_TCP_LISTEN {
		return 0, 0, ErrNotListening
	}
	return int(info.Unacked), int(info.Sacked), nil // of a listener (tcp_get_info)
}

// Close closes the listeners. Those that a worker shares live on, at places of their own, so
// close a group when no worker is to get clients any more. Connections that wait where no
// worker shares are reset.
func (g *Group) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, m := range slices.Backward(g.all()) { // from the last on, so that no place changes
		errs = append(errs, m.file.Close())
	}
	g.counting.close()
	g.counting = nil
	return errors.Join(errs...)
}

func (g *Group) checkSlots(slots int) error {
	if slots < 1 || slots > g.MaxSlots() {
		return fmt.Errorf("reuseport: %d slots: want 1 to %d", slots, g.MaxSlots())
	}
	return nil
}

// maxMembers is how many sockets a group may have, without the anchor: the kernel counts them in 16 bits.
const maxMembers = 1<<16 - 2

func (g *Group) checkMembers(members int) error {
	if members < 1 || members > maxMembers {
		return fmt.Errorf("reuseport: %d listeners: want 1 to %d", members, maxMembers)
	}
	return nil
}
