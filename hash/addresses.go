package hash

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// SlotAddresses is a network whose addresses belong to slots: the first one, whose host bits are zero, to slot 0, the
// next one to slot 1, and so on. What comes to one of them belongs to its slot, whoever the client is. The
// zero value has none.
type SlotAddresses struct{ netip.Prefix }

// The widest networks that can be one of SlotAddresses: a slot is a number of 32 bits at most.
const (
	minSlotBits4 = 1
	minSlotBits6 = 96
)

// ParseSlotAddresses reads a network such as 127.77.0.0/24 or fd77::/112.
func ParseSlotAddresses(text string) (SlotAddresses, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return SlotAddresses{}, fmt.Errorf("hash: %q: want a network, such as 127.77.0.0/24 or fd77::/112", text)
	}
	s := SlotAddresses{p}
	return s, s.Validate()
}

// Validate says why a network cannot have slots' addresses.
func (s SlotAddresses) Validate() error {
	switch {
	case s.Prefix == netip.Prefix{}:
		return nil
	case s.Prefix != s.Masked():
		return fmt.Errorf("hash: %v is no network: its first address is %v", s.Prefix, s.Masked().Addr())
	case s.Addr().Is4() && s.Bits() < minSlotBits4, s.Addr().Is6() && s.Bits() < minSlotBits6:
		return fmt.Errorf("hash: %v is too large: want /%d or longer of IPv4, /%d or longer of IPv6", s.Prefix, minSlotBits4, minSlotBits6)
	}
	return nil
}

// Room is how many slots can have an address, MaxSlots at most.
func (s SlotAddresses) Room() int {
	if !s.IsValid() {
		return 0
	}
	return 1 << min(s.Addr().BitLen()-s.Bits(), 10)
}

// Of returns a slot's address; the zero Addr if it has none.
func (s SlotAddresses) Of(slot int) netip.Addr {
	if slot < 0 || slot >= s.Room() {
		return netip.Addr{}
	}
	b := s.Addr().AsSlice()
	last := b[len(b)-4:]
	binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)|uint32(slot))
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// Slot returns the slot that an address belongs to, and whether it belongs to any. The slot is below MaxSlots, or MaxSlots for all
// addresses that come after.
func (s SlotAddresses) Slot(addr netip.Addr) (slot int, ok bool) {
	addr = addr.Unmap()
	if !s.Contains(addr) {
		return 0, false
	}
	return int(min(lastWord(addr)^lastWord(s.Addr()), MaxSlots)), true
}

// CoveredBy tells whether a socket that listens on an address gets what comes to slots' addresses: it is on all addresses of
// its family or of both, or those of the loopback interface, which package sock calls by the loopback address.
func (s SlotAddresses) CoveredBy(listener netip.Addr) bool {
	wide := listener.IsUnspecified() || listener.IsLoopback()
	return wide && (listener.Is4() == s.Addr().Is4() || listener == netip.IPv6Unspecified())
}

// lastWord returns the last 32 bits of an address.
func lastWord(addr netip.Addr) uint32 {
	b := addr.As16()
	return binary.BigEndian.Uint32(b[12:])
}

// SlotKeyWords says which key a slot wins however many slots there are, for code that computes it outside of Go
// (package reuseport): it is mix((slot+1)*factor) ^ winner. Another slot's score for it is lower, since no two
// constants are the same.
func SlotKeyWords() (factor, winner uint32) { return goldenRatio, highest }

const (
	goldenRatio = 0x9e3779b9 // 2^32 / golden ratio
	highest     = 0x331da083 // mix of it is the largest score
)
