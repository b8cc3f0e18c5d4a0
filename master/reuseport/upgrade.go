package reuseport

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
)

// Saved is what the next program needs to go on with a group.
type Saved struct {
	Network string
	Addr    *net.TCPAddr
	Own     int      // a descriptor
	Members []int    // likewise
	Sockets []uint64 // inodes of the kernel's group, by place
	At      []int    // by slot: the member that its clients come to
}

// Save keeps the group's listeners. The program by which the kernel picks one stays with them.
func (g *Group) Save(b *reexec.Bundle) Saved {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Saved{Network: g.network, Addr: g.addr, Own: b.KeepFile(g.anchor.file), Sockets: g.sockets, At: g.memberOf}
	for _, m := range g.members {
		s.Members = append(s.Members, b.KeepFile(m.file))
	}
	return s
}

// SaveCounting keeps the program that counts, if the group has one, else it returns nil.
func (g *Group) SaveCounting(b *reexec.Bundle) *SavedProgram {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counting.save(b)
}

// Restore makes a group of what Save returned in the program before. Clients are placed by that
// one's configuration until Steer. If that has counted, with what SaveCounting returned, so does this one, without any right; else, or if
// it would not know how, it takes one of the programs, which it borrows, if there is one.
func Restore(b *reexec.Bundle, s Saved, config hash.Config, counting *SavedProgram, programs *Programs) (*Group, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if s.Addr == nil || len(s.At) == 0 || len(s.Sockets) <= len(s.Members) ||
		slices.Min(s.At) < 0 || slices.Max(s.At) >= len(s.Members) {
		return nil, fmt.Errorf("reuseport: slots %v of %d listeners at %v, places %v: that cannot be", s.At, len(s.Members), s.Addr, s.Sockets)
	}
	if four := s.Addr.IP.To4(); four != nil { // JSON does not keep the length
		s.Addr.IP = four
	}
	g := &Group{config: config, network: s.Network, addr: s.Addr, sockets: s.Sockets, memberOf: s.At, programs: programs}
	if err := g.takeAll(b, s, counting); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// takeAll takes the listeners over. Those that it has taken are the group's, also if it fails.
func (g *Group) takeAll(b *reexec.Bundle, s Saved, counting *SavedProgram) (err error) {
	if g.anchor, err = takeMember(b, s.Own, fmt.Sprintf("%v, listener of nobody", s.Addr)); err != nil {
		return err
	}
	for i, fd := range s.Members {
		m, err := takeMember(b, fd, fmt.Sprintf("%v, listener %d", s.Addr, i))
		if err != nil {
			return err
		}
		g.members = append(g.members, m)
	}
	for _, m := range g.all() {
		if !slices.Contains(g.sockets, m.inode) {
			return fmt.Errorf("reuseport: socket %d of %v has none of the places %v: that cannot be", m.inode, s.Addr, s.Sockets)
		}
	}
	if g.counting, err = counting.restore(b, g.programs); err != nil {
		return err
	}
	return errors.Join(g.checkSlots(len(s.At)), g.readAnchor())
}

// takeMember returns a listener that was kept, which the caller owns.
func takeMember(b *reexec.Bundle, fd int, name string) (*member, error) {
	file, err := b.TakeUnpolled(fd, name)
	if err != nil {
		return nil, err
	}
	return newMember(file)
}
