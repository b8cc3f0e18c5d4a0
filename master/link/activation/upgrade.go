package activation

import (
	"encoding/json"
	"fmt"

	"github.com/handfast/handfast/master/reexec"
)

// part is what Save seals.
var part = reexec.Part{Name: "activation", Version: 1}

// saved is what the next program needs to go on with a link: the listeners are the slot's.
type saved struct {
	Told bool // it was told to finish
}

// Save implements supervisor.Link.
func (l *Link) Save(*reexec.Bundle) (any, error) { return reexec.Seal(part, saved{l.Told()}) }

// Restore makes a link of what Save returned in the program before.
func Restore(b *reexec.Bundle, cfg Config, state json.RawMessage) (*Link, error) {
	var s saved
	if err := b.Unseal(state, part, &s); err != nil {
		return nil, fmt.Errorf("activation: %w", err)
	}
	l := newLink(cfg)
	if s.Told {
		l.SetTold()
	}
	close(l.ready)
	return l, nil
}

// Resume implements supervisor.Link.
func (l *Link) Resume() {}
