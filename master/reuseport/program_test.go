package reuseport

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/handfast/handfast/hash"
)

// machine runs a program as the kernel would. The VM of x/net/bpf knows no loads from the
// network header on, so it gets packets that begin there.
func machine(t testing.TB, p []bpf.Instruction) func(client netip.Addr) int {
	t.Helper()
	run := machineTo(t, p)
	return func(client netip.Addr) int { return run(client, netip.Addr{}) }
}

// machineTo is machine for packets to an address.
func machineTo(t testing.TB, p []bpf.Instruction) func(client, to netip.Addr) int {
	t.Helper()
	moved := make([]bpf.Instruction, len(p))
	for i, instruction := range p {
		if load, ok := instruction.(bpf.LoadAbsolute); ok {
			if load.Off < network {
				t.Fatalf("instruction %d loads from %#x, which depends on how the packet lies in memory", i, load.Off)
			}
			load.Off -= network
			instruction = load
		}
		moved[i] = instruction
	}
	vm, err := bpf.NewVM(moved)
	if err != nil {
		t.Fatal(err)
	}
	return func(client, to netip.Addr) int {
		index, err := vm.Run(packet(client, to))
		if err != nil {
			t.Fatal(err)
		}
		return index
	}
}

// absentAt is the place of what answers for slots that are not there.
const absentAt = 5000

// packet is the beginning of a packet of a client, with all else set that must not matter: also the destination, if
// none is given.
func packet(client, to netip.Addr) []byte {
	b := make([]byte, 60)
	for i := range b {
		b[i] = 0xff
	}
	if client.Is4() {
		b[0] = 0x4f // version, header length with options
		copy(b[12:], client.AsSlice())
		copy(b[16:], to.AsSlice())
	} else {
		b[0] = 0x6f // version, traffic class
		copy(b[8:], client.AsSlice())
		copy(b[24:], to.AsSlice())
	}
	return b
}

func randomClient(r *rand.Rand) netip.Addr {
	var b [16]byte
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

// TestProgramIsHash: for every number of slots, and prefix lengths and seeds of all
// kinds, the program picks what package hash does.
func TestProgramIsHash(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	edges := []netip.Addr{
		netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("127.0.0.1"),
		netip.MustParseAddr("::"), netip.MustParseAddr("::1"), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
	}
	for slots := 1; slots <= MaxSlots; slots++ {
		configs := []hash.Config{
			hash.DefaultConfig(),
			{Seed: r.Uint32(), IPv4Prefix: r.IntN(33), IPv6Prefix: r.IntN(129)},
			{Seed: r.Uint32(), IPv4Prefix: 32, IPv6Prefix: 128},
			{Seed: 0xffffffff, IPv4Prefix: 1, IPv6Prefix: 32 * r.IntN(5)},
			{},
		}
		for _, config := range configs {
			run := machine(t, program(config, inOrder(slots), absentAt))
			for i := range 60 {
				client := randomClient(r)
				if i < len(edges) {
					client = edges[i]
				}
				if got, want := run(client), config.Key(client).Slot(slots); got != want {
					t.Fatalf("%+v: %s is in slot %d of %d, want %d", config, client, got, slots, want)
				}
			}
		}
	}
}

// TestProgramPrefixes: every prefix length, with clients that differ in the bit before
// it and in the bit behind it.
func TestProgramPrefixes(t *testing.T) {
	for prefix := range 129 {
		config := hash.Config{Seed: 1, IPv4Prefix: min(prefix, 32), IPv6Prefix: prefix}
		run := machine(t, program(config, inOrder(128), absentAt))
		client := netip.MustParseAddr("2001:db8:1234:5678:9abc:def0:1357:9bdf").As16()
		for bit := max(prefix-1, 0); bit <= min(prefix, 127); bit++ {
			flipped := client
			flipped[bit/8] ^= 0x80 >> (bit % 8)
			for _, addr := range []netip.Addr{netip.AddrFrom16(flipped), netip.AddrFrom4([4]byte(flipped[:4]))} {
				if got, want := run(addr), config.Key(addr).Slot(128); got != want {
					t.Errorf("prefix %d: %s is in slot %d, want %d", prefix, addr, got, want)
				}
			}
		}
	}
}

// TestProgramPlaces: a slot's socket need not be at the slot's own place in the group.
func TestProgramPlaces(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	config := hash.DefaultConfig()
	places := r.Perm(20)
	run := machine(t, program(config, places, absentAt))
	for range 1000 {
		client := randomClient(r)
		if got, want := run(client), places[config.Key(client).Slot(20)]; got != want {
			t.Fatalf("%s is at place %d, want %d", client, got, want)
		}
	}
}

// TestProgramSlotAddresses: what comes to a slot's own address gets the slot's socket, whoever sends it; the one for absent
// slots if there are fewer. All else is the hash's.
func TestProgramSlotAddresses(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, network := range []string{"127.77.0.0/24", "10.0.0.0/8", "127.77.0.4/30", "192.0.2.1/32", "128.0.0.0/1", "fd77::/112", "fd77:0:0:1::ff00/120", "2001:db8::/96", "fd77::7/128"} {
		own, err := hash.ParseSlotAddresses(network)
		if err != nil {
			t.Fatal(err)
		}
		config := hash.Config{Seed: r.Uint32(), IPv4Prefix: 32, IPv6Prefix: 64, Slots: own}
		for _, slots := range []int{1, 2, 3, 17, MaxSlots} {
			places := r.Perm(slots)
			run := machineTo(t, program(config, places, absentAt))
			for _, to := range destinations(r, own) {
				client := randomClient(r)
				for client.Is4() != to.Is4() {
					client = randomClient(r)
				}
				want := places[config.Key(client).Slot(slots)]
				if slot, ok := own.Slot(to); ok && slot < slots {
					want = places[slot]
				} else if ok {
					want = absentAt
				}
				if got := run(client, to); got != want {
					t.Fatalf("%v, %d slots: from %v to %v comes to %d, want %d", own, slots, client, to, got, want)
				}
			}
		}
	}
}

// destinations are a network's addresses, addresses that differ from them in one bit, and others.
func destinations(r *rand.Rand, own hash.SlotAddresses) (all []netip.Addr) {
	for slot := range min(own.Room(), 2*MaxSlots) {
		all = append(all, own.Of(slot))
	}
	for _, slot := range []int{0, own.Room() - 1} {
		for bit := range own.Addr().BitLen() {
			b := own.Of(slot).AsSlice()
			b[bit/8] ^= 0x80 >> (bit % 8)
			flipped, _ := netip.AddrFromSlice(b)
			all = append(all, flipped)
		}
	}
	for range 50 {
		all = append(all, randomClient(r))
	}
	return all
}

// TestProgramSize pins what doc and MaxSlots say.
func TestProgramSize(t *testing.T) {
	one := len(program(hash.DefaultConfig(), inOrder(1), absentAt))
	two := len(program(hash.DefaultConfig(), inOrder(2), absentAt))
	full := len(program(hash.DefaultConfig(), inOrder(MaxSlots), absentAt))
	withAddresses := hash.DefaultConfig()
	withAddresses.Slots, _ = hash.ParseSlotAddresses("fd77::/112")
	if more := len(program(withAddresses, inOrder(MaxSlots), absentAt)) - full; more > 30 {
		t.Errorf("%d instructions more if slots have addresses, want at most 30", more)
	}
	t.Logf("%d instructions for one slot, %d for each further, %d for %d slots", one, two-one, full, MaxSlots)
	if two-one != 18 {
		t.Errorf("%d instructions for a slot, want 18", two-one)
	}
	if most := 1 + (4096-one)/18; most != 223 {
		t.Errorf("%d slots fit into 4096 instructions, want 223", most)
	}
}

func FuzzProgram(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1}, uint32(0), uint8(32), uint8(64), uint8(4))
	f.Add([]byte{0x20, 1, 0xd, 0xb8, 15: 1}, uint32(7), uint8(24), uint8(56), uint8(128))
	f.Fuzz(func(t *testing.T, address []byte, seed uint32, prefix4, prefix6, slots uint8) {
		client, ok := netip.AddrFromSlice(address)
		if !ok || client.Is4In6() { // which the kernel drops
			return
		}
		config := hash.Config{Seed: seed, IPv4Prefix: int(prefix4) % 33, IPv6Prefix: int(prefix6) % 129}
		n := 1 + int(slots)%MaxSlots
		if got, want := machine(t, program(config, inOrder(n), absentAt))(client), config.Key(client).Slot(n); got != want {
			t.Errorf("%+v: %s is in slot %d of %d, want %d", config, client, got, n, want)
		}
	})
}

func BenchmarkProgram(b *testing.B) {
	for _, slots := range []int{4, MaxSlots} {
		indexes := inOrder(slots)
		b.Run(fmt.Sprint(slots), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bpf.Assemble(program(hash.DefaultConfig(), indexes, absentAt)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
