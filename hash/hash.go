// Package hash says in which slot a client belongs.
//
// An address becomes a slot in three steps:
//
//  1. Canonical: an IPv4-mapped IPv6 address is the IPv4 address, a zone is
//     dropped, and the address is cut to the prefix length of its family. What
//     is left is the same for all connections of one client.
//  2. Key: the 32-bit words of the canonical address, in network byte order,
//     are folded into one seeded 32-bit number. Text, such as a session's name,
//     can be the key instead of an address.
//  3. Slot: rendezvous hashing. Every slot gets a score from the key, and the
//     highest one wins. So when a slot is added only those clients move that
//     the new slot wins (about 1/N), when the last one is removed only its own
//     do, and the runner-up is the natural next choice.
//
// All arithmetic is on unsigned 32-bit numbers, and all state is the key and
// the best score so far: what the kernel's classic BPF can compute too, with
// the loop over the slots unrolled. The result depends on nothing but address,
// prefix lengths, seed and number of slots, so it is the same on every machine
// and after every restart. The golden vectors in the tests pin it for ever: a
// change would move every client of every installation.
//
// The hash spreads clients, it does not hide them: a client that knows the
// seed can compute its slot.
package hash

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// MaxSlots is the largest number of slots. The cost of placing a client grows
// with the number of slots (about 2 ns each), and this keeps it far below the
// cost of accepting its connection.
const MaxSlots = 1024

// Marks that keep keys of different kinds apart.
const (
	kindIPv4 = 4
	kindIPv6 = 6
	kindText = 1
)

// Config says how addresses become keys, and which addresses are slots' own.
type Config struct {
	Seed       uint32 // any value; equal seeds give equal slots everywhere
	IPv4Prefix int    // leading bits of an IPv4 address that count, 0 to 32 (0: all IPv4 clients are one)
	IPv6Prefix int    // leading bits of an IPv6 address that count, 0 to 128

	Slots SlotAddresses // what comes to them belongs to their slots; zero: clients alone decide
}

// DefaultConfig tells whole IPv4 addresses apart, and IPv6 addresses by their
// /64: that is what one household or host is given, and privacy extensions
// (RFC 8981) change the rest several times a day.
func DefaultConfig() Config {
	return Config{IPv4Prefix: 32, IPv6Prefix: 64}
}

// Validate reports a prefix length that its family does not have.
func (c Config) Validate() error {
	if c.IPv4Prefix < 0 || c.IPv4Prefix > 32 {
		return fmt.Errorf("hash: IPv4 prefix length %d: want 0 to 32", c.IPv4Prefix)
	}
	if c.IPv6Prefix < 0 || c.IPv6Prefix > 128 {
		return fmt.Errorf("hash: IPv6 prefix length %d: want 0 to 128", c.IPv6Prefix)
	}
	return c.Slots.Validate()
}

// Key is what a client is recognised by, folded to 32 bits.
type Key uint32

// Key returns the key of an address. The zero Addr has a key of its own.
func (c Config) Key(addr netip.Addr) Key {
	addr = addr.Unmap()
	switch {
	case addr.Is4():
		a := addr.As4()
		h, mask := c.IPv4Words()
		return Key(mix(h ^ binary.BigEndian.Uint32(a[:])&mask))
	case addr.Is6():
		a := addr.As16()
		h, masks := c.IPv6Words()
		for i, mask := range masks {
			h = mix(h ^ binary.BigEndian.Uint32(a[4*i:])&mask)
		}
		return Key(h)
	default:
		return Key(mix(c.Seed))
	}
}

// Text returns the key of a text: its bytes in words, the last one filled up with
// zeros, and its length. It keeps nothing of text.
func (c Config) Text(text string) Key {
	h := mix(c.Seed ^ kindText)
	for rest := text; rest != ""; {
		var w [4]byte
		n := copy(w[:], rest)
		h = mix(h ^ binary.BigEndian.Uint32(w[:]))
		rest = rest[n:]
	}
	return Key(mix(h ^ uint32(len(text))))
}

// Slot returns the slot, 0 to slots-1, in which the client belongs.
// slots must be 1 to MaxSlots.
func (k Key) Slot(slots int) int {
	best, score := 0, mix(uint32(k)^slotConstants[0])
	for i, constant := range slotConstants[1:slots] {
		if s := mix(uint32(k) ^ constant); s > score {
			best, score = i+1, s
		}
	}
	return best
}

// Ranked returns the client's choice of the given rank: rank 0 is its Slot,
// rank 1 the slot it would have if that one did not exist, and so on up to
// slots-1. Every rank names another slot.
func (k Key) Ranked(slots, rank int) int {
	best := k.Slot(slots)
	for ; rank > 0; rank-- {
		best = k.below(mix(uint32(k)^slotConstants[best]), slots)
	}
	return best
}

// below returns the slot with the highest score under bound. Scores never tie:
// the constants differ and mix is a bijection.
func (k Key) below(bound uint32, slots int) int {
	best, score := -1, uint32(0)
	for i, constant := range slotConstants[:slots] {
		if s := mix(uint32(k) ^ constant); s < bound && (best < 0 || s > score) {
			best, score = i, s
		}
	}
	return best
}

// IPv4Words says how an IPv4 address becomes a key, for code that computes it outside
// of Go (package reuseport): start is what its word is folded into, and mask the bits of the
// word that count. The key is mix(start ^ word&mask).
func (c Config) IPv4Words() (start, mask uint32) {
	return mix(c.Seed ^ kindIPv4), leading(c.IPv4Prefix)
}

// IPv6Words is IPv4Words for the four words of an IPv6 address, each folded into what
// became of the one before it.
func (c Config) IPv6Words() (start uint32, masks [4]uint32) {
	for i := range masks {
		masks[i] = leading(c.IPv6Prefix - 32*i)
	}
	return mix(c.Seed ^ kindIPv6), masks
}

// SlotConstant returns the constant of a slot, which must be below MaxSlots: the slot's
// score for a key is mix(key ^ constant), and the slot with the highest score wins.
func SlotConstant(slot int) uint32 { return slotConstants[slot] }

// leading returns a word whose first bits are set: none for bits <= 0, all for
// bits >= 32.
func leading(bits int) uint32 {
	return ^uint32(uint64(1)<<(32-min(max(bits, 0), 32)) - 1)
}

// mix is the 32-bit finalizer of MurmurHash3 (Austin Appleby, public domain):
// a bijection in which every input bit flips every output bit about half of the
// time.
func mix(x uint32) uint32 {
	x ^= x >> 16
	x *= 0x85ebca6b
	x ^= x >> 13
	x *= 0xc2b2ae35
	x ^= x >> 16
	return x
}

// slotConstants do not depend on the seed, which is in the key already.
var slotConstants = func() (constants [MaxSlots]uint32) {
	for i := range constants {
		constants[i] = mix(uint32(i+1) * goldenRatio)
	}
	return constants
}()
