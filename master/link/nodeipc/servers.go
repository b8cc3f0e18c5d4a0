package nodeipc

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/listening"
)

// maxServers is how many servers a worker may have on the balancer's port, each on addresses
// of its own.
const maxServers = 64

// server is one that a worker has on the balancer's port.
type server struct {
	key       string
	addresses []netip.Prefix // that it listens on
	of        netip.AddrPort // the balancer's address whose connections it gets
	offer     offer
}

var (
	everyIPv4 = netip.MustParsePrefix("0.0.0.0/0")
	everyIPv6 = netip.MustParsePrefix("::/0")
)

// addresses are those that a server listens on if it names this one; nil names none, and that
// means all.
func addresses(named *string, only6 bool) []netip.Prefix {
	if named == nil || *named == "::" && !only6 {
		return []netip.Prefix{everyIPv4, everyIPv6}
	}
	addr, err := netip.ParseAddr(*named)
	switch {
	case err != nil:
		return nil
	case addr == netip.IPv4Unspecified():
		return []netip.Prefix{everyIPv4}
	case addr == netip.IPv6Unspecified():
		return []netip.Prefix{everyIPv6}
	}
	addr = addr.Unmap()
	return []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool { return slices.ContainsFunc(b, p.Overlaps) })
}

func (l *Link) has(key string) bool {
	return slices.ContainsFunc(l.servers, func(s server) bool { return s.key == key })
}

// listens adds a server on the balancer's port and returns the balancer's address that its
// connections come from. They follow the answer.
//
// The first gets all connections, whatever address it names, unless that lets others in
// (*listening.NarrowerError): it is written to be balanced. A further one gets those of its own
// address, so the balancer must listen there.
func (l *Link) listens(key string, q *query, listeners []netip.AddrPort) (netip.AddrPort, error) {
	s := server{key: key, addresses: addresses(q.Address, q.Flags&ipv6Only != 0), offer: toServer(key)}
	at := slices.IndexFunc(listeners, func(ln netip.AddrPort) bool {
		text := ln.Addr().String()
		return overlap(s.addresses, addresses(&text, false))
	})
	switch {
	case l.has(key), slices.ContainsFunc(l.servers, func(other server) bool { return overlap(other.addresses, s.addresses) }):
		return netip.AddrPort{}, unix.EADDRINUSE // two servers of one program
	case len(l.servers) == maxServers:
		return netip.AddrPort{}, unix.EMFILE
	case at < 0 && len(l.servers) > 0:
		l.warnOnce("worker listens where handfast does not", "slot", l.slot, "address", *q.Address, "port", q.Port,
			"remedy", "add --listen with that address")
		return netip.AddrPort{}, unix.EADDRNOTAVAIL
	}
	s.of = listeners[max(at, 0)]
	if err := narrower(q, s.of); err != nil {
		return netip.AddrPort{}, err
	}
	l.servers = append(l.servers, s)
	l.shut = false
	return s.of, nil
}

// narrower is listening.Narrower of what a worker asks for.
func narrower(q *query, listen netip.AddrPort) error {
	if q.Address == nil {
		return nil
	}
	addr, err := netip.ParseAddr(*q.Address)
	if err != nil {
		return nil
	}
	return listening.Narrower(netip.AddrPortFrom(addr, uint16(q.Port)), listen)
}

// Accepts tells whether a server of the worker accepts from its own listener on this
// address of the balancer's.
func (l *Link) Accepts(addr netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own != nil && slices.ContainsFunc(l.servers, func(s server) bool { return s.of == addr })
}

// Served tells whether the worker has a server on the balancer's port.
func (l *Link) Served() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.servers) > 0
}

// serverClosed notes that the program closed a server. If it was the last one it may listen again, as under
// Node's cluster; if it does not, it has left.
func (l *Link) serverClosed(key string) {
	before := len(l.servers)
	l.servers = slices.DeleteFunc(l.servers, func(s server) bool { return s.key == key })
	switch {
	case len(l.servers) == before:
		return
	case len(l.servers) > 0 && l.own != nil: // nobody accepts for it any more
		l.leave(ErrClosedServer)
		return
	case len(l.servers) > 0:
		return
	}
	l.shut = true
	l.after(reopen, l.staysShut)
}

func (l *Link) staysShut() {
	if l.shut {
		l.leave(ErrClosedServer)
	}
}

// offerTo says how a connection is offered: to the server that listens on the address that the
// client has called, to the first one if there is none.
func (l *Link) offerTo(fd int) *offer {
	switch len(l.servers) {
	case 0:
		return &l.offer
	case 1:
		return &l.servers[0].offer
	}
	called, _ := sock.Local(fd)
	i := slices.IndexFunc(l.servers, func(s server) bool {
		return slices.ContainsFunc(s.addresses, func(p netip.Prefix) bool { return p.Contains(called.Addr()) })
	})
	return &l.servers[max(i, 0)].offer
}
