package listening

import (
	"fmt"
	"net/netip"
)

// NarrowerError is why a worker is not served: it would listen on one address only, such as
// localhost, and get connections from all that the balancer listens on. A server for localhost
// must not become public because of an address that somebody has left out.
type NarrowerError struct {
	Worker, Listen netip.AddrPort
}

func (e *NarrowerError) Error() string {
	wide := netip.IPv6Unspecified()
	if e.Worker.Addr().Unmap().Is4() {
		wide = netip.IPv4Unspecified()
	}
	return fmt.Sprintf("the worker listens on %v only, handfast on %v: that would let others in; say --listen %[1]v, or have the worker listen on %[3]v",
		e.Worker, e.Listen, netip.AddrPortFrom(wide, e.Worker.Port()))
}

// Narrower returns a *NarrowerError if a worker that listens on an address would get, from the
// balancer's, connections to others; else nil.
func Narrower(worker, listen netip.AddrPort) error {
	own, all := worker.Addr().Unmap(), listen.Addr().Unmap()
	if own.IsValid() && !own.IsUnspecified() && (all.IsUnspecified() || own.IsLoopback() && !all.IsLoopback()) {
		return &NarrowerError{netip.AddrPortFrom(own, worker.Port()), listen}
	}
	return nil
}
