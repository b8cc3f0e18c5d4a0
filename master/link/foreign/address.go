package foreign

import "net/netip"

// Address is where a socket is bound.
type Address struct {
	netip.AddrPort
	OnlyIPv6 bool // IPV6_V6ONLY; false where we do not know
}

// conflicts tells whether two sockets that are bound to these addresses would share
// connections.
func (a Address) conflicts(b Address) bool {
	return a.Port() == b.Port() && (a.Addr() == b.Addr() || a.covers(b) || b.covers(a))
}

// covers tells whether a is a wildcard that takes also what is for b.
func (a Address) covers(b Address) bool {
	return a.Addr().IsUnspecified() && (a.Addr().Is4() == b.Addr().Is4() || a.Addr().Is6() && !a.OnlyIPv6)
}

// Fit says how well a listener stands in for a socket that is bound to an address; 0: not.
func (a Address) Fit(bound Address) int {
	switch {
	case !a.conflicts(bound):
		return 0
	case a.Addr() == bound.Addr():
		return 3
	case a.Addr().Is4() == bound.Addr().Is4():
		return 2
	default:
		return 1
	}
}
