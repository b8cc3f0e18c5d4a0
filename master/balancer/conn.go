package balancer

import (
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
}

// believe returns a connection that has come back, with its true peer. The worker that gave it back says
// where it is from, and could say anything. Only what a PROXY header has said is known from nowhere else.
func (b *Balancer) believe(h fdpass.Handoff) fdpass.Handoff {
	if !b.cfg.Clients.ProxyProtocol {
		h.Flags &^= fdpass.FlagProxied
	}
	if h.Flags&fdpass.FlagProxied == 0 {
		if peer, _ := sock.Peer(h.FD); peer.IsValid() { // else it is gone
			h.Client = peer
		}
	}
	return h
}
