package steer

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
)

// Saved is what the next program needs to go on with a group.
type Saved struct {
	Network string
	Addr    *net.TCPAddr
	Members []int // descriptors, by slot
	Places  []int
	Slots   int
}

// Save keeps the group's listeners. The program by which the kernel picks one stays with them.
func (g *Group) Save(b *reexec.Bundle) Saved {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Saved{Network: g.network, Addr: g.addr, Places: g.places, Slots: g.slots}
	for _, member := range g.members {
		s.Members = append(s.Members, b.KeepFile(member))
	}
	return s
}

// Restore makes a group of what Save returned in the program before. Clients are placed by that
// one's configuration until Resize.
func Restore(b *reexec.Bundle, s Saved, config hash.Config) (*Group, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	g := &Group{config: config, network: s.Network, addr: s.Addr, places: s.Places, slots: s.Slots}
	if s.Addr == nil || len(s.Members) == 0 || len(s.Places) != len(s.Members) || s.Slots < 1 || s.Slots > len(s.Members) {
		return nil, fmt.Errorf("steer: %d of %d listeners at %v: that cannot be", s.Slots, len(s.Members), s.Addr)
	}
	if four := s.Addr.IP.To4(); four != nil { // JSON does not keep the length
		s.Addr.IP = four
	}
	for slot, fd := range s.Members {
		file, err := b.TakeBehind(fd, fmt.Sprintf("%v, slot %d", s.Addr, slot))
		if err != nil {
			return nil, err
		}
		g.members = append(g.members, file)
	}
	err := control(g.members[0], func(fd int) (err error) {
		g.bound, err = unix.Getsockname(fd)
		return os.NewSyscallError("getsockname", err)
	})
	return g, err
}
