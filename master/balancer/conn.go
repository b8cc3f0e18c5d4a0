package balancer

import (
	"net/netip"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/clientip"
)

// NoSlot stands for the slot of a client that is not known yet.
const NoSlot = -1

// connection is one that the master has accepted and no worker has yet. Its client is zero as long as it is
// not known.
type connection struct {
	fdpass.Handoff
	client clientip.Client
	since  time.Time // when it began to wait; zero: it did not

	addressed bool // to a slot's own address (hash.SlotAddresses): to slot, which may not be there
	assigned  bool // to slot, since it belongs to any
	slot      int
}

// peer is where it is from, for logs.
func (c *connection) peer() string {
	if !c.Client.IsValid() && c.Flags&fdpass.FlagUnix != 0 {
		return unixText
	}
	return c.Client.String()
}

// unixText is what logs have where a Unix socket's peer has no address.
const unixText = "unix"

func addressText(addr netip.Addr) string {
	if !addr.IsValid() {
		return unixText
	}
	return addr.String()
}

// locate notes whether a connection came to a slot's own address.
func (b *Balancer) locate(c *connection) {
	if own := &b.cfg.Clients.Hash.Slots; own.IsValid() {
		if at, err := sock.Local(c.FD); err == nil {
			c.slot, c.addressed = own.Slot(at.Addr())
		}
	}
}

// place returns where a connection belongs among so many slots, as Strategy.Slot does. That slot is not there
// if it is none of them, as only an address of a slot's own can say.
func (c *connection) place(s Strategy, slots, rank int) int {
	if c.addressed {
		return c.slot
	}
	at, decided := c.slot, c.assigned
	if name := &c.client.Name; name.Start != 0 { // of a session whose worker's successor is there
		at, decided = name.Slot, true
	}
	if decided && at < slots {
		if rank == 0 {
			return at
		}
		rank--
	}
	return s.Slot(c.client, slots, rank)
}

// believe returns a connection that has come back, with its true peer, which is invalid if it is gone, or local: from a Unix
// socket of ours. The worker that gave it back says where it is from, and could say anything. Only what a PROXY header has said is
// known from nowhere else.
func (b *Balancer) believe(h fdpass.Handoff, peer netip.AddrPort, local bool) fdpass.Handoff {
	h.Flags &= fdpass.FlagProxied
	if !b.cfg.Clients.ProxyProtocol {
		h.Flags, h.Details = 0, ""
	}
	if h.Flags == 0 && (peer.IsValid() || local) {
		h.Client = peer
	}
	if local {
		h.Flags |= fdpass.FlagUnix
	}
	return h
}
