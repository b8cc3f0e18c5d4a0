package trap

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/handfast/handfast/master/reexec"
)

// saved is what the next program needs to go on with a link.
type saved struct {
	Asked int // the descriptor on which the filter asks
	PIDs  []int
	Taken []netip.AddrPort // addresses whose listeners servers of the worker have
	Told  bool             // it was told to finish
}

// Save implements supervisor.Link. Who waits for an answer of the filter goes on waiting.
func (l *Link) Save(b *reexec.Bundle) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := saved{Asked: b.KeepFile(l.asked.file), PIDs: l.pids, Told: l.Told()}
	for _, ln := range l.listeners {
		if ln.taken {
			s.Taken = append(s.Taken, ln.AddrPort)
		}
	}
	return s, nil
}

// Restore makes a link of what Save returned in the program before. Nobody is answered before
// Resume.
func Restore(b *reexec.Bundle, cfg Config, state json.RawMessage) (*Link, error) {
	var s saved
	if err := json.Unmarshal(state, &s); err != nil {
		return nil, fmt.Errorf("trap: %w", err)
	}
	l, err := newLink(cfg)
	if err != nil {
		return nil, err
	}
	file, err := b.Take(s.Asked, "seccomp notifications")
	if err != nil {
		return nil, fmt.Errorf("trap: %w", err)
	}
	if l.asked, err = NewNotifications(file); err != nil {
		return nil, fmt.Errorf("trap: %w", err)
	}
	l.pids = s.PIDs
	for _, at := range s.Taken {
		for _, ln := range l.listeners {
			ln.taken = ln.taken || ln.AddrPort == at
		}
	}
	if s.Told {
		l.SetTold()
	}
	close(l.ready)
	return l, nil
}

// Resume implements supervisor.Link.
func (l *Link) Resume() { l.done.Go(l.answer) }
