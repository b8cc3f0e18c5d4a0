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
	"github.com/handfast/handfast/master/reuseport"
)

// errFamilies: see OnlyIPv4.
var errFamilies = errors.New("the workers that served first listen on both families, this one on IPv4 only; restart handfast, or give --listen an IPv4 address (0.0.0.0:PORT)")

// OnlyIPv4 returns the worker's listener for IPv4 alone, in place of one for both families. The
// first call opens them, for all berths: from then on they get all clients of IPv4, and those for
// both families go away (retire). So only the workers that serve first can decide that: those of a
// later generation may not stay. If these listen on both families, they are served by IPv4.
func (l *Lease) OnlyIPv4(both *os.File) (*os.File, error) {
	s := l.route
	s.mu.Lock()
	defer s.mu.Unlock()
	isIts := func(g *reuseport.Group) bool { return g.Listener(l.berth.number) == both }
	of := slices.IndexFunc(s.groups, isIts)
	group := (*reuseport.Group)(nil)
	if of >= 0 {
		group = s.groups[of]
	}
	for g := range s.ipv4 { // the worker was started before it went away
		if isIts(g) {
			group = g
		}
	}
	if group == nil {
		return nil, net.ErrClosed
	}
	four, opened := s.ipv4[group]
	if !opened {
		if s.served {
			return nil, errFamilies
		}
		var err error
		if four, err = group.OnlyIPv4(); err != nil || four == nil {
			return nil, cmp.Or(err, net.ErrClosed)
		}
		s.ipv4[group] = four
		err = s.join(four)
		s.log.Info("listening", "address", four.Addr().String(), "route", "kernel", "why", "workers listen on IPv4 only")
		s.retireSoon()
		if err != nil {
			return nil, err
		}
	}
	return four.Listener(l.berth.number), nil
}

// Follow returns the worker's listener on an address that it binds, where handfast listens from then on
// for all slots. As with OnlyIPv4, the workers that serve first decide where that is: what one of
// a later generation binds elsewhere is its own, and the file is nil.
func (l *Lease) Follow(bound netip.AddrPort, onlyIPv6 bool) (*os.File, error) {
	s := l.route
	s.mu.Lock()
	defer s.mu.Unlock()
	if bound.Addr() == netip.IPv6Unspecified() && !onlyIPv6 { // or it cannot be known
		onlyIPv6 = slices.ContainsFunc(s.groups, func(g *reuseport.Group) bool {
			return g.Addr().AddrPort() == netip.AddrPortFrom(netip.IPv4Unspecified(), bound.Port())
		})
	}
	for _, g := range s.groups {
		if at := g.Addr().AddrPort(); netip.AddrPortFrom(at.Addr().Unmap(), at.Port()) == bound {
			return g.Listener(l.berth.number), nil
		}
	}
	if s.served {
		return nil, nil
	}
	address := bound.String()
	if bound.Addr() == netip.IPv6Unspecified() && !onlyIPv6 {
		address = fmt.Sprintf(":%d", bound.Port())
	}
	if err := asuser.Do(s.user, func() error { return tryBind(bound) }); err != nil {
		return nil, fmt.Errorf("a worker may not listen there by itself; say --listen if handfast is to: %w", err)
	}
	at := make([]int, len(s.at))
	for slot, b := range s.at {
		at[slot] = b.number
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	g, err := reuseport.ListenFor(ctx, address, s.balancer.Config().Clients.Hash, at, len(s.berths))
	if err != nil {
		return nil, err
	}
	s.log.Info("listening", "address", g.Addr().String(), "route", "kernel", "why", "workers listen there, and --listen was left out")
	if err := s.join(g); err != nil {
		return nil, err
	}
	return g.Listener(l.berth.number), nil
}

// tryBind tells whether a socket can be bound to an address.
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
	if err := unix.Bind(fd, name); err != unix.EADDRINUSE { // by whom is found out below
		return os.NewSyscallError("bind", err)
	}
	return nil
}

// retireSoon calls retire when handshakes are over that are under way.
func (s *Route) retireSoon() { time.AfterFunc(balancer.LastGrace, s.retire) }

// retire closes groups for both families in whose place there are others, for IPv4 alone: where no
// worker listens nobody does. So the kernel refuses clients of IPv6, which then try IPv4, as
// browsers do for localhost. Whoever waits there is refused with an answer. One that a worker
// accepts from stays, since not all of them listen on IPv4 only.
func (s *Route) retire() {
	s.mu.Lock()
	groups := slices.Collect(maps.Keys(s.ipv4))
	var links []Link
	for _, b := range s.berths {
		for _, l := range b.leases {
			if l.link != nil {
				links = append(links, l.link)
			}
		}
	}
	s.mu.Unlock()
	for _, g := range groups {
		at := g.Addr().AddrPort()
		if !slices.ContainsFunc(links, func(l Link) bool { return l.Accepts(at) }) { // asked without our lock
			s.leave(g)
		}
	}
}

// leave closes a group.
func (s *Route) leave(g *reuseport.Group) {
	if !s.forget(g) {
		return
	}
	// Without our lock, since this may wait for a program to be replaced.
	for i := range g.Members() {
		ln := g.Listener(i)
		if waiting, _, err := g.Queue(i); err == nil && waiting > 0 {
			if err := s.refuser.TakeBacklog(ln); err != nil {
				s.log.Error("whoever waits at an address that is no more is not refused", "address", g.Addr().String(), "err", err)
			}
		}
		// An accept that waits, since the listener is a blocking one, ends only so.
		sock.Control(ln, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
	}
	g.Close()
	s.log.Info("not listening on IPv6 any more", "address", g.Addr().String(), "why", "workers listen on IPv4 only: clients that try IPv6 first are refused by the kernel, and go on to IPv4")
}

// forget has a group be none of ours any more, and tells whether it was.
func (s *Route) forget(g *reuseport.Group) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.groups, g)
	if i < 0 || s.closed {
		return false
	}
	s.groups = slices.Delete(slices.Clone(s.groups), i, i+1)
	for i := range g.Members() {
		s.acceptors.stop(g.Listener(i))
	}
	for _, b := range s.berths {
		delete(b.doing, g)
	}
	return true
}

// Addresses returns those that the kernel gives clients of to slots.
func (s *Route) Addresses() (all []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		all = append(all, g.Addr().AddrPort())
	}
	return all
}

// join adds a group, for all berths.
func (s *Route) join(g *reuseport.Group) (err error) {
	s.groups = append(slices.Clone(s.groups), g)
	for _, b := range s.berths {
		if s.blocking {
			err = errors.Join(err, block(g.Listener(b.number)))
		}
		s.updateAcceptor(b, g)
	}
	return err
}
