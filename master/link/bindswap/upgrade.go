package bindswap

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/reexec"
)

// part is what Save seals.
var part = reexec.Part{Name: "any", Version: 1}

// saved is what the next program needs to go on with a link.
type saved struct {
	foreign.Saved
	Taken []netip.AddrPort // addresses whose listeners servers of the worker have
}

// Save implements supervisor.Link. Calls that wait for an answer of the filter go on waiting.
func (l *Link) Save(b *reexec.Bundle) (any, error) { return reexec.Seal(part, l.save(b)) }

func (l *Link) save(b *reexec.Bundle) saved {
	s := saved{Saved: l.SaveWorker(b)}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ln := range l.listeners {
		if ln.taken {
			s.Taken = append(s.Taken, ln.AddrPort)
		}
	}
	return s
}

// Restore makes a link of what Save returned in the program before. Nobody is answered before
// Resume.
func Restore(b *reexec.Bundle, cfg Config, state json.RawMessage) (*Link, error) {
	var s saved
	if err := b.Unseal(state, part, &s); err != nil {
		return nil, fmt.Errorf("taking a worker over: %w", err)
	}
	l, err := newLink(cfg)
	if err != nil {
		return nil, err
	}
	if l.Link, err = foreign.Restore(b, s.Saved, cfg.Drain, cfg.Logger); err != nil {
		return nil, err
	}
	for _, at := range s.Taken {
		for _, ln := range l.listeners {
			ln.taken = ln.taken || ln.AddrPort == at
		}
	}
	return l, nil
}

// Resume implements supervisor.Link.
func (l *Link) Resume() { l.Go(l.answer) }
