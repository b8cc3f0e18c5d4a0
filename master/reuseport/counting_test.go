package reuseport

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
)

// mayLoad skips a test where eBPF cannot be loaded. It must be where CI says so.
func mayLoad(t testing.TB) *Programs {
	t.Helper()
	p, err := LoadPrograms(1, MaxSlots)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(p.Close)
	return p
}

// handshake is the first packet of a handshake, from the link's header on, as BPF_PROG_TEST_RUN takes it. What must not matter is set at
// random; without a destination, that too.
func handshake(r *rand.Rand, client, to netip.Addr, flags byte) []byte {
	b := make([]byte, 14+80)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	ip := b[14:]
	tcp := 40
	if client.Is4() {
		binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
		words := 5 + r.IntN(5) // with options
		ip[0], ip[9], tcp = 0x40|byte(words), unix.IPPROTO_TCP, 4*words
		copy(ip[12:], client.AsSlice())
		copy(ip[16:], to.AsSlice())
	} else {
		binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IPV6)
		ip[0], ip[6] = 0x60|ip[0]&0x0f, unix.IPPROTO_TCP
		copy(ip[8:], client.AsSlice())
		copy(ip[24:], to.AsSlice())
	}
	ip[tcp+13] = flags | byte(r.Uint32())&0xed // all others
	return b
}

// TestCountingIsHash: the kernel, running the program, picks what package hash does and what the classic program does, and counts it in
// its slot: for numbers of slots, seeds, prefix lengths and slots' addresses of all kinds.
func TestCountingIsHash(t *testing.T) {
	mayLoad(t)
	c, err := loadCounting(hash.MaxSlots)
	fdtest.Check(t, err)
	t.Cleanup(c.close)
	fd, err := unix.Dup(int(c.program.Fd()))
	fdtest.Check(t, err)
	p, err := ebpf.NewProgramFromFD(fd)
	fdtest.Check(t, err)
	t.Cleanup(func() { p.Close() })
	r := rand.New(rand.NewPCG(3, 4))
	counted := make([]uint64, hash.MaxSlots)
	own4, _ := hash.ParseSlotAddresses("127.77.0.0/24")
	own6, _ := hash.ParseSlotAddresses("fd77::8:0:0/112")
	for _, slots := range []int{1, 2, 3, 4, 7, 16, 64, 127, 128, 129, 500, 1023, hash.MaxSlots} {
		for _, config := range []hash.Config{
			hash.DefaultConfig(),
			{},
			{Seed: 0xffffffff, IPv4Prefix: 1, IPv6Prefix: 32 * r.IntN(5), Slots: own4},
			{Seed: r.Uint32(), IPv4Prefix: r.IntN(33), IPv6Prefix: r.IntN(129), Slots: own6},
		} {
			places := r.Perm(3 * slots)[:slots]
			c.steer(config, places, absentAt)
			classic := machineTo(t, program(config, places[:min(slots, MaxSlots)], absentAt))
			for i := range 50 {
				client, to, flags := randomClient(r), netip.Addr{}, byte(syn)
				if i%4 == 1 && client.Is4() == config.Slots.Addr().Is4() { // some are not there
					to = config.Slots.Of(r.IntN(max(min(config.Slots.Room(), 2*slots), 1)))
				}
				if i%5 == 2 {
					flags = []byte{0, 0x10, 0x12}[r.IntN(3)] // it belongs to no handshake that begins
				}
				slot, addressed := config.Slots.Slot(to)
				if !addressed {
					slot = config.Key(client).Slot(slots)
				}
				want := absentAt
				if slot < slots {
					want = places[slot]
				}
				data := handshake(r, client, to, flags)
				got, _, err := p.Test(data)
				fdtest.Check(t, err)
				if int(got) != want {
					t.Fatalf("%+v: %v to %v is given to place %d, want %d of slot %d of %d", config, client, to, got, want, slot, slots)
				}
				if to.IsValid() == addressed && slots <= MaxSlots {
					if same := classic(client, to); same != want {
						t.Fatalf("%+v: %v to %v: the classic program says %d, want %d", config, client, to, same, want)
					}
				}
				if slot < slots && flags == syn {
					counted[slot]++
				}
			}
		}
	}
	if came := c.came(); !slices.Equal(came, counted) {
		t.Errorf("counted %v, want %v", came, counted)
	}
}

// counts has all groups of a test count.
func counts(t *testing.T) {
	t.Helper()
	mayLoad(t)
	programs, err := LoadPrograms(0, MaxSlots) // each group loads its own
	fdtest.Check(t, err)
	programsAtTest = programs
	t.Cleanup(func() { programsAtTest = nil })
}

// TestCounting: what is promised of a group does not depend on which program it has.
func TestCounting(t *testing.T) {
	counts(t)
	for name, test := range map[string]func(*testing.T){
		"KernelIsHash":         TestKernelIsHash,
		"KernelSynCookies":     TestKernelSynCookies,
		"SlotAddresses":        TestSlotAddresses,
		"StartsWhole":          TestStartsWhole,
		"ResizeUnderLoad":      TestResizeUnderLoad,
		"ShrinkKeepsWhatWaits": TestShrinkKeepsWhatWaits,
		"Repair":               TestRepair,
		"RepairProgram":        TestRepairProgram,
		"SwapDuringHandshake":  TestSwapDuringHandshake,
		"StopHandshakes":       TestStopHandshakes,
		"OnlyIPv4":             TestOnlyIPv4,
		"SaveRestore":          TestSaveRestore,
		"RestoreOtherHash":     TestRestoreOtherHash,
	} {
		t.Run(name, test)
	}
}

// connects has clients connect and be answered, and returns how many came to each slot.
func connects(t *testing.T, g *Group, slots, clients int) []uint64 {
	t.Helper()
	want := make([]uint64, hash.MaxSlots)
	for i := range clients {
		client := loopback(i)
		got, err := slotOf(t.Context(), client, net.JoinHostPort("127.0.0.1", strconv.Itoa(g.Addr().Port)))
		fdtest.Check(t, err)
		if want := g.config.Key(client).Slot(slots); got != want {
			t.Fatalf("%v came to slot %d, want %d", client, got, want)
		}
		want[got]++
	}
	return want
}

func sum(all ...[]uint64) []uint64 {
	total := make([]uint64, hash.MaxSlots)
	for _, counts := range all {
		for slot, n := range counts {
			total[slot] += n
		}
	}
	return total
}

// TestCame: each handshake is counted once in its slot, and not what comes otherwise: a client that is given another program's answer, or
// sends to a connection that is over. Counts go on over all that happens to a group.
func TestCame(t *testing.T) {
	fdtest.NoLeaks(t)
	if g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2); g.Came() != nil || g.MaxSlots() != MaxSlots {
		t.Error("a group without programs counts")
	}
	counts(t)
	config := hash.DefaultConfig()
	config.Slots, _ = hash.ParseSlotAddresses("127.77.0.0/24")
	g := mustListen(t, ":0", config, 3)
	acceptAll(t, g, 0, 3, nil)
	expect := func(step string, want []uint64) {
		t.Helper()
		if got := g.Came(); !slices.Equal(got, want) {
			t.Fatalf("%s: %v, want %v", step, got[:4], want[:4])
		}
	}
	expect("nobody came", sum())
	want := connects(t, g, 3, 60)
	expect("of three slots", want)
	_, err := g.Repair()
	fdtest.Check(t, err)
	fdtest.Check(t, g.Steer([]int{0, 1}))
	want = sum(want, connects(t, g, 2, 20))
	expect("of two slots", want)

	port := strconv.Itoa(g.Addr().Port)
	if slot, err := slotOf(t.Context(), netip.MustParseAddr("127.0.0.1"), "127.77.0.1:"+port); err != nil || slot != 1 {
		t.Errorf("slot %d, %v", slot, err)
	}
	want[1]++
	conn, err := dial(t.Context(), netip.MustParseAddr("127.0.0.1"), "127.77.0.9:"+port) // which is not there
	if err == nil {
		conn.Close()
	}
	expect("by slots' addresses", want)

	conn, err = dial(t.Context(), loopback(1), "127.0.0.1:"+port)
	fdtest.Check(t, err)
	want[config.Key(loopback(1)).Slot(2)]++
	io.Copy(io.Discard, conn)
	fdtest.Eventually(t, "a packet to a connection that is over is answered", func() bool {
		_, err := conn.Write([]byte("x"))
		return err != nil
	})
	conn.Close()
	expect("packets of no handshake", want)

	b, saved := inherit(t, g)
	next, err := Restore(b, saved, config, inheritCounting(t, g, b), nil)
	fdtest.Check(t, err)
	t.Cleanup(func() { next.Close() })
	fdtest.Check(t, g.Close())
	g = next
	expect("another program", want)
	acceptAll(t, g, 0, 3, nil)
	fdtest.Check(t, g.Steer([]int{0, 1, 2}))
	want = sum(want, connects(t, g, 3, 30))
	expect("goes on", want)

	b, saved = inherit(t, g)
	counting := inheritCounting(t, g, b)
	counting.Layout = layout + 1
	next, err = Restore(b, saved, config, counting, programsAtTest)
	fdtest.Check(t, err)
	t.Cleanup(func() { next.Close() })
	fdtest.Check(t, g.Close())
	g = next
	acceptAll(t, g, 0, 3, nil)
	fdtest.Check(t, g.Steer([]int{0, 1, 2}))
	want = sum(want, connects(t, g, 3, 30))
	expect("with a program of its own", want)

	b, saved = inherit(t, g)
	counting = inheritCounting(t, g, b)
	counting.Layout = layout + 1
	next, err = Restore(b, saved, config, counting, nil)
	fdtest.Check(t, err)
	t.Cleanup(func() { next.Close() })
	fdtest.Check(t, g.Close())
	if next.Came() != nil {
		t.Error("counts although there is no program that could")
	}
}

// TestManySlots: programs that count pick from more slots than a classic one can, of which some share a listener here.
func TestManySlots(t *testing.T) {
	fdtest.NoLeaks(t)
	mayLoad(t)
	p, err := LoadPrograms(1, hash.MaxSlots)
	fdtest.Check(t, err)
	t.Cleanup(p.Close)
	if p.MaxSlots() != hash.MaxSlots {
		t.Error(p.MaxSlots())
	}
	at := make([]int, hash.MaxSlots)
	for slot := range at {
		at[slot] = slot % 3
	}
	g, err := ListenFor(t.Context(), "127.0.0.1:0", hash.DefaultConfig(), at, 3, p)
	fdtest.Check(t, err)
	t.Cleanup(func() { g.Close() })
	acceptAll(t, g, 0, 3, nil)
	want := make([]uint64, hash.MaxSlots)
	for i := range 100 {
		client := loopback(i)
		slot := g.config.Key(client).Slot(hash.MaxSlots)
		want[slot]++
		if got, err := slotOf(t.Context(), client, g.Addr().String()); err != nil || got != slot%3 {
			t.Fatalf("%v came to member %d, %v, want %d", client, got, err, slot%3)
		}
	}
	if !slices.Equal(g.Came(), want) {
		t.Error("counted", g.Came())
	}
	if err := g.Steer(append(at, 0)); err == nil {
		t.Error("one slot too many")
	}
}

// nobody owns nothing.
const nobody = 65534

// TestLoadWithoutRights: a process that may not load eBPF is told so, and its groups do without. With CAP_BPF and CAP_PERFMON it can, on
// Linux 6.1, too.
func TestLoadWithoutRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	mayLoad(t)
	for _, tt := range []struct {
		capabilities []uintptr
		want         string
	}{{nil, "SKIP"}, {[]uintptr{unix.CAP_BPF, unix.CAP_PERFMON}, "PASS"}} {
		program := filepath.Join(t.TempDir(), "test")
		fdtest.Check(t, copyProgram(program))
		cmd := exec.Command(program, "-test.run=^TestCountingIsHash$", "-test.v")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: tt.capabilities}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- "+tt.want+": TestCountingIsHash") {
			t.Errorf("with capabilities %v: %v\n%s\nwant %s", tt.capabilities, err, out, tt.want)
		}
	}
}

// copyProgram copies this program to where everybody may run it.
func copyProgram(to string) error {
	from, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	for dir := filepath.Dir(to); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(to, from, 0o755)
}

func BenchmarkLoad(b *testing.B) {
	mayLoad(b)
	for b.Loop() {
		c, err := loadCounting(MaxSlots)
		if err != nil {
			b.Fatal(err)
		}
		c.close()
	}
}

// BenchmarkHandshake is a connection to a group, opened, accepted and closed, by either program.
func BenchmarkHandshake(b *testing.B) {
	programs := mayLoad(b)
	for _, slots := range []int{4, MaxSlots} {
		for name, p := range map[string]*Programs{"classic": nil, "eBPF": programs} {
			b.Run(name+"/"+strconv.Itoa(slots), func(b *testing.B) {
				g, err := ListenWith(b.Context(), "127.0.0.1:0", hash.DefaultConfig(), slots, Options{Programs: p})
				if err != nil {
					b.Fatal(err)
				}
				defer g.Close()
				to := &unix.SockaddrInet4{Port: g.Addr().Port, Addr: [4]byte{127, 0, 0, 1}}
				listener := int(g.Listener(g.config.Key(netip.MustParseAddr("127.0.0.1")).Slot(slots)).Fd())
				for b.Loop() {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						b.Fatal(err)
					}
					unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
					if err := unix.Connect(fd, to); err != nil {
						b.Fatal(err)
					}
					accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
					if err != nil {
						b.Fatal(err)
					}
					unix.Close(fd)
					unix.Close(accepted)
				}
			})
		}
	}
}
