package hash

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"testing"
)

// TestGolden pins the function itself. If it fails, the hash has changed, and
// with it the slot of every client of every installation: that is never a fix.
func TestGolden(t *testing.T) {
	for _, v := range []struct {
		addr  string
		seed  uint32
		key   Key
		slots [4]int // of 2, 4, 16, 128
	}{
		{"127.0.0.1", 0, 0x8de5fe47, [4]int{0, 2, 15, 72}},
		{"192.0.2.1", 0, 0xc693d52b, [4]int{0, 2, 6, 92}},
		{"192.0.2.1", 1, 0x45091639, [4]int{1, 1, 4, 56}},
		{"203.0.113.254", 3735928559, 0x24692f17, [4]int{0, 2, 7, 126}},
		{"::1", 0, 0x1aab4d0a, [4]int{1, 1, 15, 75}},
		{"2001:db8::1", 0, 0xf4a7c103, [4]int{0, 0, 0, 115}},
		{"2001:db8:1:2:3:4:5:6", 0, 0x1740d798, [4]int{0, 2, 13, 41}},
		{"2001:db8:1:2:3:4:5:6", 4294967295, 0x8bd619ed, [4]int{0, 2, 5, 118}},
		{"fe80::1%eth0", 7, 0x860bb3eb, [4]int{0, 0, 6, 44}},
	} {
		c := DefaultConfig()
		c.Seed = v.seed
		key := c.Key(netip.MustParseAddr(v.addr))
		got := [4]int{key.Slot(2), key.Slot(4), key.Slot(16), key.Slot(128)}
		if key != v.key || got != v.slots {
			t.Errorf("{%q, %d, %#08x, %#v}, want key %#08x slots %v", v.addr, v.seed, uint32(key), got, uint32(v.key), v.slots)
		}
	}
}

// TestTextGolden pins the keys of texts in the same way.
func TestTextGolden(t *testing.T) {
	for _, v := range []struct {
		text  string
		seed  uint32
		key   Key
		slots [4]int // of 2, 4, 16, 128
	}{
		{"", 0, 0x2fef5c8f, [4]int{1, 2, 2, 45}},
		{"a", 0, 0xa3dee849, [4]int{1, 1, 8, 20}},
		{"abcd", 0, 0x8ab072a8, [4]int{1, 1, 7, 48}},
		{"abcde", 0, 0x082e4cc0, [4]int{1, 1, 1, 35}},
		{"user-1", 0, 0x0031d00a, [4]int{1, 1, 6, 24}},
		{"user-1", 1, 0x9b1f61e8, [4]int{1, 1, 12, 80}},
		{"user-2", 3735928559, 0xa4b54f75, [4]int{0, 2, 8, 127}},
		{"0b5f9a3c7e1d4f28", 0, 0x2374e9c8, [4]int{1, 2, 8, 92}},
		{"3f2504e0-4f89-11d3-9a0c-0305e82c3301", 0, 0x6b9ebf93, [4]int{1, 3, 4, 79}},
		{"3f2504e0-4f89-11d3-9a0c-0305e82c3301", 4294967295, 0xc840ad18, [4]int{1, 1, 10, 63}},
		{"Zoë", 7, 0xb92f016d, [4]int{0, 0, 0, 17}},
		{"\x00\x00\x00", 0, 0x9295635a, [4]int{0, 0, 13, 85}},
	} {
		c := DefaultConfig()
		c.Seed = v.seed
		key := c.Text(v.text)
		got := [4]int{key.Slot(2), key.Slot(4), key.Slot(16), key.Slot(128)}
		if key != v.key || got != v.slots {
			t.Errorf("{%q, %d, %#08x, %#v}, want key %#08x slots %v", v.text, v.seed, uint32(key), got, uint32(v.key), v.slots)
		}
	}
}

// TestTextApart: texts that a sloppy folding would take for each other, and the
// addresses whose words they are, have keys of their own.
func TestTextApart(t *testing.T) {
	c := DefaultConfig()
	keys := make(map[Key]string)
	add := func(key Key, name string) {
		if other, found := keys[key]; found {
			t.Errorf("%s has the key of %s", name, other)
		}
		keys[key] = name
	}
	for _, text := range []string{
		"", "a", "ab", "abc", "abcd", "abcde", "dcba", "bcda", "Abcd", "abcdabcd", "abcdefgh", "efghabcd", // case and order
		"\x00", "\x00\x00", "\x00\x00\x00", "\x00\x00\x00\x00", "\x00\x00\x00\x00\x00", // length
		"a\x00", "a\x00\x00", "a\x00\x00\x00", "a\x00\x00\x00\x00", "\x00a", "abcd\x00", "abcd\x00\x00\x00\x00", // filling
		"\x00\x00\x00\x01", "\x00\x00\x00\x04", "\x00\x00\x00\x06", // marks
		"\xc0\x00\x02\x01", "192.0.2.1", "2001:db8::1",
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		add(c.Text(text), fmt.Sprintf("text %q", text))
	}
	for _, addr := range []string{"0.0.0.0", "0.0.0.1", "0.0.0.4", "192.0.2.1", "97.98.99.100", "::", "2001:db8::"} {
		add(c.Key(netip.MustParseAddr(addr)), addr)
	}
	add(c.Key(netip.Addr{}), "the zero Addr")
}

// TestTextIgnoresPrefixes: they are about addresses.
func TestTextIgnoresPrefixes(t *testing.T) {
	if a, b := DefaultConfig().Text("user-1"), (Config{}).Text("user-1"); a != b {
		t.Errorf("user-1 is %#08x with prefixes, %#08x without", a, b)
	}
}

func TestNoAllocations(t *testing.T) {
	c := DefaultConfig()
	text, addr := "3f2504e0-4f89-11d3-9a0c-0305e82c3301", v6(0x20010db8<<32, 1)
	if n := testing.AllocsPerRun(100, func() { _, _ = c.Text(text).Slot(16), c.Key(addr).Slot(16) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestCanonical: what is one client has one key.
func TestCanonical(t *testing.T) {
	whole := Config{IPv4Prefix: 32, IPv6Prefix: 128}
	for _, same := range []struct {
		config Config
		a, b   string
		want   bool
	}{
		{whole, "192.0.2.7", "::ffff:192.0.2.7", true},
		{whole, "fe80::1%eth0", "fe80::1%7", true},
		{whole, "fe80::1%eth0", "fe80::1", true},
		{whole, "2001:db8::1", "2001:db8::2", false},
		{whole, "192.0.2.7", "192.0.2.8", false},
		{whole, "192.0.2.7", "::192.0.2.7", false},
		{DefaultConfig(), "2001:db8:1:2:3::1", "2001:db8:1:2:4::2", true},
		{DefaultConfig(), "2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{Config{IPv4Prefix: 24, IPv6Prefix: 56}, "192.0.2.7", "192.0.2.200", true},
		{Config{IPv4Prefix: 24, IPv6Prefix: 56}, "192.0.2.7", "192.0.3.7", false},
		{Config{IPv4Prefix: 24, IPv6Prefix: 56}, "2001:db8:0:100::", "2001:db8:0:1ff::", true},
		{Config{IPv4Prefix: 24, IPv6Prefix: 56}, "2001:db8:0:100::", "2001:db8:0:200::", false},
		{Config{}, "192.0.2.7", "203.0.113.9", true},
		{Config{}, "2001:db8::1", "fe80::1", true},
		{Config{}, "0.0.0.0", "::", false},
	} {
		a := same.config.Key(netip.MustParseAddr(same.a))
		b := same.config.Key(netip.MustParseAddr(same.b))
		if (a == b) != same.want {
			t.Errorf("%+v: key of %s equals key of %s: %v, want %v", same.config, same.a, same.b, a == b, same.want)
		}
	}
}

// sources are the address plans that installations see: clients are rarely
// random, mostly they differ in a few bits.
var sources = map[string]func(i uint32, r *rand.Rand) netip.Addr{
	"IPv4 random":     func(_ uint32, r *rand.Rand) netip.Addr { return v4(r.Uint32()) },
	"IPv4 sequential": func(i uint32, _ *rand.Rand) netip.Addr { return v4(0x0a000000 + i) },
	"IPv4 loopback":   func(i uint32, _ *rand.Rand) netip.Addr { return v4(0x7f000001 + i) },
	"IPv4 one per /24": func(i uint32, _ *rand.Rand) netip.Addr {
		return v4(i<<8 | 1)
	},
	"IPv6 random":         func(_ uint32, r *rand.Rand) netip.Addr { return v6(r.Uint64(), r.Uint64()) },
	"IPv6 sequential /64": func(i uint32, _ *rand.Rand) netip.Addr { return v6(0x20010db8<<32|uint64(i), 1) },
	"IPv6 one per /56":    func(i uint32, _ *rand.Rand) netip.Addr { return v6(0x20010db8<<32|uint64(i)<<8, 1) },
}

// texts are the keys that applications choose.
var texts = map[string]func(i uint32, r *rand.Rand) string{
	"UUID": func(_ uint32, r *rand.Rand) string { // version 4, RFC 9562
		hi, lo := r.Uint64(), r.Uint64()
		return fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", hi>>32, hi>>16&0xffff, hi&0xfff, lo>>48&0x3fff|0x8000, lo&(1<<48-1))
	},
	"UUID by time": func(i uint32, r *rand.Rand) string { // version 7, one each millisecond
		hi, lo := r.Uint64(), r.Uint64()
		return fmt.Sprintf("%08x-%04x-7%03x-8%03x-%012x", 0x01890a5d+i>>16, i&0xffff, hi&0xfff, hi>>52, lo>>16)
	},
	"user id":    func(i uint32, _ *rand.Rand) string { return fmt.Sprintf("user-%d", i+1) },
	"session id": func(_ uint32, r *rand.Rand) string { return fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64()) },
	"base 36":    func(i uint32, _ *rand.Rand) string { return strconv.FormatUint(uint64(i), 36) },
}

func v4(a uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}

func v6(hi, lo uint64) netip.Addr {
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(56-8*i)), byte(lo>>(56-8*i))
	}
	return netip.AddrFrom16(b)
}

// TestEven: every plan of addresses spreads evenly for every number of slots.
func TestEven(t *testing.T) {
	t.Parallel()
	for name, addr := range sources {
		testEven(t, name, addr, Config.Key)
	}
}

// TestTextEven: so does every kind of text.
func TestTextEven(t *testing.T) {
	t.Parallel()
	for name, text := range texts {
		testEven(t, name, text, Config.Text)
	}
}

// testEven puts a bound on chi-squared: its mean is slots-1 and its deviation
// sqrt(2(slots-1)) when the spread is as good as chance.
func testEven[T any](t *testing.T, name string, source func(uint32, *rand.Rand) T, key func(Config, T) Key) {
	r := rand.New(rand.NewPCG(1, 2))
	clients := make([]T, 50_000)
	for i := range clients {
		clients[i] = source(uint32(i), r)
	}
	for _, seed := range []uint32{0, 1, 0xdeadbeef} {
		c := DefaultConfig()
		c.Seed = seed
		keys := make([]Key, len(clients))
		for i, client := range clients {
			keys[i] = key(c, client)
		}
		for _, slots := range []int{2, 3, 4, 7, 16, 128} {
			counts := make([]int, slots)
			for _, key := range keys {
				counts[key.Slot(slots)]++
			}
			expect := float64(len(clients)) / float64(slots)
			chi, worst := 0.0, 0.0
			for _, n := range counts {
				d := float64(n) - expect
				chi += d * d / expect
				worst = max(worst, math.Abs(d)/expect)
			}
			free := float64(slots - 1)
			if limit := free + 6*math.Sqrt(2*free); chi > limit {
				t.Errorf("%s, %d slots, seed %d: chi-squared %.1f, want below %.1f (furthest slot %.1f %% off)", name, slots, seed, chi, limit, 100*worst)
			}
		}
	}
}

// TestMinimalMovement: from N to N+1 slots, those who move go to the new slot,
// and they are about 1/(N+1).
func TestMinimalMovement(t *testing.T) {
	const clients = 50_000
	c := DefaultConfig()
	for _, n := range []int{1, 2, 4, 7, 16, 63} {
		moved := 0
		for i := range uint32(clients) {
			key := c.Key(v4(0x0a000000 + i))
			before, after := key.Slot(n), key.Slot(n+1)
			if before == after {
				continue
			}
			if moved++; after != n {
				t.Fatalf("%d to %d slots: a client moved from %d to the old slot %d", n, n+1, before, after)
			}
		}
		expect := float64(clients) / float64(n+1)
		if math.Abs(float64(moved)-expect) > 6*math.Sqrt(expect) {
			t.Errorf("%d to %d slots: %d clients moved, want about %.0f", n, n+1, moved, expect)
		}
	}
}

// TestRanked: the ranks name each slot once, the first is the slot itself, and
// the clients of one slot spread evenly over the others when it is down.
func TestRanked(t *testing.T) {
	const slots, clients = 8, 80_000
	c := DefaultConfig()
	second := make([]int, slots)
	for i := range uint32(clients) {
		key := c.Key(v4(i * 2654435761))
		if key.Ranked(slots, 0) != key.Slot(slots) {
			t.Fatal("rank 0 is not the client's slot")
		}
		if i < 1000 {
			seen := make(map[int]bool)
			for rank := range slots {
				seen[key.Ranked(slots, rank)] = true
			}
			if len(seen) != slots {
				t.Fatalf("%d ranks name only %d slots", slots, len(seen))
			}
		}
		if key.Slot(slots) == 3 {
			second[key.Ranked(slots, 1)]++
		}
	}
	expect := float64(clients) / slots / (slots - 1)
	for slot, n := range second {
		if slot != 3 && math.Abs(float64(n)-expect) > 6*math.Sqrt(expect) {
			t.Errorf("slot %d takes over %d clients of slot 3, want about %.0f", slot, n, expect)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []Config{{IPv4Prefix: -1}, {IPv4Prefix: 33}, {IPv6Prefix: -1}, {IPv6Prefix: 129}} {
		if c.Validate() == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func BenchmarkSlot(b *testing.B) {
	c := DefaultConfig()
	for name, addr := range map[string]netip.Addr{"IPv4": v4(0x7f000001), "IPv6": v6(0x20010db8<<32, 1)} {
		for _, slots := range []int{1, 4, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d", name, slots), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					_ = c.Key(addr).Slot(slots)
				}
			})
		}
	}
}
