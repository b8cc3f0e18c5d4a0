package reuseport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/hash"
)

// TestKernelIsHash: the kernel gives clients to the slots that package hash says, IPv4 and
// IPv6, whatever the address form.
func TestKernelIsHash(t *testing.T) {
	if inNetwork(t) {
		testKernel(t, 100)
	}
}

// TestKernelSynCookies: and so it does when it keeps nothing of a client between its first
// packet and its second (man 7 tcp, tcp_syncookies).
func TestKernelSynCookies(t *testing.T) {
	if inNetwork(t) {
		setSysctl(t, "/proc/sys/net/ipv4/tcp_syncookies", "2")
		testKernel(t, 10)
		if n := netstat(t, "SyncookiesRecv"); n == 0 {
			t.Error("no connection came by a cookie")
		}
	}
}

// TestKernelLimits: with the limits of old kernels, as many slots as MaxSlots says.
func TestKernelLimits(t *testing.T) {
	if inNetwork(t) {
		const limit = "/proc/sys/net/core/optmem_max" // of a namespace since Linux 6.8
		_, err := os.Stat(limit)
		if err == nil {
			setSysctl(t, limit, "20480")
		}
		g := mustListen(t, "[::1]:0", hash.DefaultConfig(), MaxSlots)
		attachErr := control(g.anchor.file, func(fd int) error { return attach(fd, program(g.config, inOrder(MaxSlots+8), absentAt)) })
		if err == nil && !errors.Is(attachErr, unix.ENOMEM) {
			t.Errorf("%d slots: %v, want ENOMEM", MaxSlots+8, attachErr)
		}
	}
}

// testKernel connects from many addresses of the families that each form of address serves.
func testKernel(t *testing.T, clients int) {
	r := rand.New(rand.NewPCG(5, 6))
	forms := []struct {
		address string
		dial    []string
	}{
		{":0", []string{"127.0.0.1", "::1"}},
		{"0.0.0.0:0", []string{"127.0.0.1"}},
		{"[::]:0", []string{"::1"}},
		{"127.0.0.1:0", []string{"127.0.0.1"}},
		{"[::1]:0", []string{"::1"}},
	}
	configs := []hash.Config{
		hash.DefaultConfig(),
		{Seed: 0xdeadbeef, IPv4Prefix: 32, IPv6Prefix: 128},
		{Seed: 7, IPv4Prefix: 20, IPv6Prefix: 9},
	}
	for _, form := range forms {
		for i, slots := range []int{1, 2, 3, 8, MaxSlots} {
			config := configs[i%len(configs)]
			t.Run(fmt.Sprintf("%s/%d", form.address, slots), func(t *testing.T) {
				g := mustListen(t, form.address, config, slots)
				acceptAll(t, g, 0, slots, nil)
				for _, to := range form.dial {
					to := netip.AddrPortFrom(netip.MustParseAddr(to), uint16(g.Addr().Port))
					for range clients {
						client := randomSource(r, to.Addr().Is4())
						got, err := slotOf(t.Context(), client, to.String())
						if err != nil {
							t.Fatal(err)
						}
						if want := config.Key(client).Slot(slots); got != want {
							t.Fatalf("%s came to slot %d, want %d", client, got, want)
						}
					}
				}
			})
		}
	}
}

// randomSource is an address of which the network namespace makes this host's.
func randomSource(r *rand.Rand, four bool) netip.Addr {
	if four {
		return loopback(r.Int())
	}
	var b [16]byte
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	b[0] = 0x20 | b[0]&0x1f // 2000::/3, global unicast (RFC 4291, section 2.4)
	return netip.AddrFrom16(b)
}

func setSysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// netstat reads a counter of this network namespace.
func netstat(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if at := slices.Index(names, name); at >= 0 {
			n, err := strconv.Atoi(values[at])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no counter %s", name)
	return 0
}
