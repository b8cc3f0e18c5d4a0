package kernelroute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/asuser"
	"github.com/handfast/handfast/master/balancer"
)

// errFamilies: a worker listens on IPv4 alone, and those that served first did not (OnlyIPv4).
var errFamilies = errors.New("the workers that served first listen on both families, this one on IPv4 only; restart handfast, or give --listen an IPv4 address (0.0.0.0:PORT)")

// OnlyIPv4 returns the worker's listener for IPv4 alone, in place of one for both families. The first call opens
// such listeners for all berths. From then on they get all clients of IPv4, and the listeners for both families go
// away (retire). So only the workers that serve first can decide that, since those of a later generation may not
// stay. Later workers that listen on both families are given clients of IPv4.
func (l *Lease) OnlyIPv4(both *os.File) (*os.File, error) {
	r := l.route
	r.mu.Lock()
	defer r.mu.Unlock()
	isIts := func(g Group) bool { return g.Listener(l.berth.number) == both }
	of := slices.IndexFunc(r.groups, isIts)
	var its Group
	if of >= 0 {
		its = r.groups[of]
	}
	for g := range r.ipv4 { // the group may have gone away since the worker was started
		if isIts(g) {
			its = g
		}
	}
	if its == nil {
		return nil, net.ErrClosed
	}
	four, opened := r.ipv4[its]
	if !opened {
		if r.served {
			return nil, errFamilies
		}
		var err error
		if four, err = its.OnlyIPv4(); err != nil || four == nil {
			return nil, cmp.Or(err, net.ErrClosed)
		}
		r.ipv4[its] = four
		err = r.addGroup(four)
		r.log.Info("listening", "address", four.Addr().String(), "route", "kernel", "why", "workers listen on IPv4 only")
		r.retireSoon()
		if err != nil {
			return nil, err
		}
	}
	return four.Listener(l.berth.number), nil
}

// Follow returns the worker's listener on an address that it binds. Handfast listens there for all slots from then
// on. As with OnlyIPv4, the workers that serve first decide where that is: the file is nil if a worker of a later
// generation binds elsewhere, which is the worker's own affair.
func (l *Lease) Follow(bound netip.AddrPort, onlyIPv6 bool) (*os.File, error) {
	r := l.route
	r.mu.Lock()
	defer r.mu.Unlock()
	if bound.Addr() == netip.IPv6Unspecified() && !onlyIPv6 { // or the caller cannot know
		onlyIPv6 = slices.ContainsFunc(r.groups, func(g Group) bool {
			return g.Addr().AddrPort() == netip.AddrPortFrom(netip.IPv4Unspecified(), bound.Port())
		})
	}
	for _, g := range r.groups {
		if at := g.Addr().AddrPort(); netip.AddrPortFrom(at.Addr().Unmap(), at.Port()) == bound {
			return g.Listener(l.berth.number), nil
		}
	}
	if r.served {
		return nil, nil
	}
	address := bound.String()
	if bound.Addr() == netip.IPv6Unspecified() && !onlyIPv6 {
		address = fmt.Sprintf(":%d", bound.Port())
	}
	if err := asuser.Do(r.user, func() error { return tryBind(bound) }); err != nil {
		return nil, fmt.Errorf("a worker may not listen there by itself; say --listen if handfast is to: %w", err)
	}
	at := make([]int, len(r.berthOf))
	for slot, b := range r.berthOf {
		at[slot] = b.number
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	g, err := r.machine.Listen(ctx, address, r.hash, at, len(r.berths))
	if err != nil {
		return nil, err
	}
	r.log.Info("listening", "address", g.Addr().String(), "route", "kernel", "why", "workers listen there, and --listen was left out")
	if err := r.addGroup(g); err != nil {
		return nil, err
	}
	return g.Listener(l.berth.number), nil
}

// tryBind fails unless a socket can be bound to an address, or is already.
func tryBind(at netip.AddrPort) error {
	name, family := sock.Sockaddr(at)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if family == unix.AF_INET6 {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err := unix.Bind(fd, name); err != unix.EADDRINUSE { // listening will say which process is in the way
		return os.NewSyscallError("bind", err)
	}
	return nil
}

// retireSoon calls retire when handshakes that are under way have had their time.
func (r *Route) retireSoon() { time.AfterFunc(balancer.LastGrace, r.retire) }

// retire closes the groups for both families that have one for IPv4 alone in their place. Then nobody listens where
// no worker does, and the kernel refuses clients of IPv6, which try IPv4 next, as browsers do for localhost.
// Connections that wait there are refused with an answer. A group that a worker accepts from stays, since not all
// workers listen on IPv4 only.
func (r *Route) retire() {
	r.mu.Lock()
	groups := slices.Collect(maps.Keys(r.ipv4))
	var links []Link
	for _, b := range r.berths {
		for _, l := range b.leases {
			if l.link != nil {
				links = append(links, l.link)
			}
		}
	}
	r.mu.Unlock()
	for _, g := range groups {
		at := g.Addr().AddrPort()
		if !slices.ContainsFunc(links, func(l Link) bool { return l.Accepts(at) }) { // asked without our lock
			r.closeGroup(g)
		}
	}
}

// closeGroup refuses the connections that wait in a group and closes it.
func (r *Route) closeGroup(g Group) {
	if !r.removeGroup(g) {
		return
	}
	// Without our lock, since this may wait for a program to be replaced.
	for i := range g.Members() {
		ln := g.Listener(i)
		if waiting, _, err := g.Queue(i); err == nil && waiting > 0 {
			if err := r.refuser.TakeBacklog(ln); err != nil {
				r.log.Error("cannot refuse connections that wait at an address that handfast leaves", "address", g.Addr().String(), "err", err)
			}
		}
		// This alone ends an accept that waits, which it does if the listener blocks.
		sock.Control(ln, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
	}
	g.Close()
	r.log.Info("not listening on IPv6 any more", "address", g.Addr().String(), "why", "workers listen on IPv4 only: clients that try IPv6 first are refused by the kernel, and go on to IPv4")
}

// removeGroup takes a group out of the Route, and tells whether it was in there.
func (r *Route) removeGroup(g Group) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.groups, g)
	if i < 0 || r.closed {
		return false
	}
	r.groups = slices.Delete(slices.Clone(r.groups), i, i+1)
	came := g.Came()
	r.came, r.uncounted = added(r.came, came), r.uncounted || came == nil
	for i := range g.Members() {
		r.acceptors.stop(g.Listener(i))
	}
	r.acceptors.stop(g.Absent())
	for _, b := range r.berths {
		delete(b.doing, g)
	}
	return true
}

// Addresses returns those that the Route listens on.
func (r *Route) Addresses() (all []netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.groups {
		all = append(all, g.Addr().AddrPort())
	}
	return all
}

// addGroup adds a group, which has a member for each berth.
func (r *Route) addGroup(g Group) (err error) {
	r.groups = append(slices.Clone(r.groups), g)
	if r.blocking {
		for _, b := range r.berths {
			err = errors.Join(err, setBlocking(g.Listener(b.number)))
		}
	}
	r.updateAcceptors()
	return err
}
