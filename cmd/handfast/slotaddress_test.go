package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

// slotNetwork has slots' own addresses in tests. 127.0.0.0/24 is what clients connect from.
var slotNetwork, _ = hash.ParseSlotAddresses("127.77.0.0/24")

// slotFlags are for that. Patience is longer than a worker takes to start, on a busy machine.
var slotFlags = []string{"--slot-address", slotNetwork.String(), "--max-retries", "300"}

// atSlot returns a slot's own address, on the balancer's port.
func (b *instance) atSlot(slot int) string {
	return netip.AddrPortFrom(slotNetwork.Of(slot), netip.MustParseAddrPort(b.addr).Port()).String()
}

// askSlot makes one request to a slot's own address, on a connection of its own.
func (b *instance) askSlot(from netip.Addr, slot int, before string) (answer, error) {
	conn, err := dialTo(from, b.atSlot(slot))
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%sGET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", before); err != nil {
		return answer{}, err
	}
	return response(conn)
}

// servesSlots fails unless each slot of n gets what comes to its own address, whoever sends it, and what comes to
// further ones is reset.
func (b *instance) servesSlots(n int, before string) {
	b.t.Helper()
	for slot := range n {
		for i := range 12 {
			if a, err := b.askSlot(source(i), slot, before); err != nil || a.status != http.StatusOK || a.slot != slot {
				b.t.Fatalf("from %v to %s: %+v, %v", source(i), b.atSlot(slot), a, err)
			}
		}
	}
	for _, slot := range []int{n, n + 1, 255} {
		b.resets(slot, before)
	}
}

// resets fails unless what comes to a slot's own address is reset before a byte of an answer.
func (b *instance) resets(slot int, before string) {
	b.t.Helper()
	a, err := b.askSlot(source(slot), slot, before)
	if !isReset(err) {
		b.t.Fatalf("to %s, which belongs to no slot: %+v, %v", b.atSlot(slot), a, err)
	}
}

// isReset tells whether a proxy would try its next server.
func isReset(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNREFUSED)
}

// slotLoad makes requests to the first n slots' own addresses, each of which has to be answered by its slot, until stop.
func (b *instance) slotLoad(n int, before string) (made *atomic.Int64, stop func()) {
	made = new(atomic.Int64)
	ended := make(chan struct{})
	var clients sync.WaitGroup
	for slot := range n {
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-ended:
					return
				default:
				}
				if a, err := b.askSlot(source(i%50), slot, before); err != nil || a.status != http.StatusOK || a.slot != slot {
					b.t.Errorf("to %s: %+v, %v", b.atSlot(slot), a, err)
					return
				}
				made.Add(1)
			}
		})
	}
	return made, sync.OnceFunc(func() { close(ended); clients.Wait() })
}

// slotAddresses is what --slot-address promises, of a balancer with three workers. before is what clients send first.
func slotAddresses(t *testing.T, b *instance, before string) {
	b.servesSlots(3, before)
	for slot, s := range b.status().Slots {
		if want := []string{b.atSlot(slot)}; !slices.Equal(s.Addresses, want) {
			t.Errorf("status of slot %d: addresses %v, want %v", slot, s.Addresses, want)
		}
	}

	made, stop := b.slotLoad(2, before)
	defer stop()
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	b.signal(unix.SIGTTOU)
	b.await("number of slots changed")
	b.resets(2, before)
	b.signal(unix.SIGTTIN)
	b.awaitCount("number of slots changed", 2)
	b.awaitCount("worker ready", 7)
	b.servesSlots(3, before)
	kill(t, b.worker(2)) // its clients wait for the next one
	for i := range 4 {
		if a, err := b.askSlot(source(i), 2, before); err != nil || a.slot != 2 {
			t.Errorf("after the worker was killed: %+v, %v", a, err)
		}
	}
	if n := made.Load(); !eventually(func() bool { return made.Load() >= n+10 || t.Failed() }) {
		t.Error("the other slots are not served")
	}
	stop()
	b.servesSlots(3, before)
}

// onLoopback has a balancer, and its workers, listen on 127.0.0.1, at a port that is free on all addresses. Other tests
// have addresses of their own (trial.FreeAddress), which slots' addresses go together with only on all of the interface.
func onLoopback(t *testing.T) func(*exec.Cmd) {
	var port string
	if !eventually(func() bool {
		ln, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", 10_000+rand.IntN(20_000)))
		if err == nil {
			port = portOf(t, ln.Addr().String())
			ln.Close()
		}
		return err == nil
	}) {
		t.Fatal("no port is free")
	}
	return func(cmd *exec.Cmd) {
		cmd.Args[slices.Index(cmd.Args, "--listen")+1] = "127.0.0.1:" + port
		cmd.Env = append(cmd.Env, "PORT="+port)
		if slices.ContainsFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "HANDFAST_TEST_LISTEN=127") }) {
			cmd.Env = append(cmd.Env, "HANDFAST_TEST_LISTEN=127.0.0.1:"+port)
		}
	}
}

// TestSlotAddress: a slot's own address is the slot, by either route and all links, in a reload, when the number of slots
// changes, and when a worker is killed.
func TestSlotAddress(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		options
		before string // what clients send first
	}{
		"kernel":                  {options: options{variant: variant{route: "kernel"}}},
		"kernel, all addresses":   {options: options{variant: variant{route: "kernel"}, flags: []string{"--listen", ":0"}}},
		"kernel, any":             {options: options{variant: variant{"kernel", "any"}, change: onLoopback(t)}},
		"kernel, activation":      {options: options{variant: variant{"kernel", "activation"}, worker: []string{"activated"}}},
		"kernel, for connections": {options: options{variant: variant{route: "kernel"}, worker: []string{"receives"}}},
		"master":                  {options: options{variant: variant{route: "master"}}},
		"master, all IPv4":        {options: options{variant: variant{route: "master"}, flags: []string{"--listen", "0.0.0.0:0"}}},
		"master, all addresses":   {options: options{variant: variant{route: "master"}, flags: []string{"--listen", ":0"}}},
		"master, any":             {options: options{variant: variant{"master", "any"}, change: onLoopback(t)}},
		"behind a proxy":          {options: options{flags: []string{"--behind-proxy"}}},
		"PROXY protocol":          {options: options{flags: []string{"--proxy-protocol"}}, before: "PROXY TCP4 203.0.113.7 192.0.2.1 4711 80\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.flags = append(slices.Clone(slotFlags), tt.flags...)
			b := start(t, 3, tt.options)
			slotAddresses(t, b, tt.before)
			if tt.before == "" {
				b.slotsOf(sources(10), 2) // by address, as ever
			}
		})
	}
}

// TestSlotAddressNode: nor does it depend on Node, whose servers accept for themselves by the kernel's route.
func TestSlotAddressNode(t *testing.T) {
	t.Parallel()
	for _, route := range []string{"kernel", "master"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			under(t, variant{route: route})
			b := startNode(t, 3, `server.listen(PORT, '127.0.0.1')`, nodeOptions{
				flags:  slotFlags,
				change: onLoopback(t),
			})
			slotAddresses(t, b, "")
		})
	}
}

// TestSlotAddressUpgrade: an upgrade gives slots addresses of their own, or others, where that is listened on already. Else it
// is refused, and says why.
func TestSlotAddressUpgrade(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, _ string) {
		config := filepath.Join(t.TempDir(), "config.yaml")
		configure := func(network string) {
			if err := os.WriteFile(config, []byte("workers: 3\n"+network), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		const others = "127.78.0.0/24"
		configure("")
		b := start(t, 3, options{flags: []string{"--config", config, "--listen", ":0"}})
		for _, network := range []string{others, slotNetwork.String()} {
			configure("slot-address: " + network + "\n")
			b.tell("upgrade")
		}
		b.servesSlots(3, "")
		b.slotsOf(sources(10), 1)

		configure("")
		b = start(t, 3, options{flags: []string{"--config", config}, change: onLoopback(t)})
		configure("slot-address: " + others + "\n")
		if out := b.begin("upgrade").ends(exitFailure); !strings.Contains(out, "from this one alone to all addresses of the loopback interface: an upgrade cannot change that; stop it") {
			t.Error(out)
		}
		b.slotsOf(sources(10), 1)
	})
}

// TestSlotAddressIPv6: slots have IPv6 addresses, by either route, on all addresses and on the loopback interface.
func TestSlotAddressIPv6(t *testing.T) {
	t.Parallel()
	testworker := []string{trial.Build(t, testWorker), "http"}
	trial.Need(t, "curl", "curl")
	const ask = `for slot in 0 1 2 3; do curl -sg --max-time 60 -o - http://[fd77::$slot]:8080/ || echo "curl ends with $?"; done`
	answers := regexp.MustCompile(`^slot=0 .*\nslot=1 .*\nslot=2 .*\ncurl ends with (7|52|56)\n$`)
	for _, route := range []string{"kernel", "master"} {
		for _, listen := range []string{":8080", "[::1]:8080"} {
			t.Run(route+" "+listen, func(t *testing.T) {
				t.Parallel()
				b := runsUnder(t, network(t, "ip -6 route add local fd77::/112 dev lo; "), append([]string{"--workers", "3", "--route", route, "--listen", listen, "--slot-address", "fd77::/112", "--"}, testworker...)...)
				b.awaitCount("worker ready", 3)
				if got := b.within("sh", "-c", ask); !answers.MatchString(got) {
					t.Errorf("slots 0 to 3 answer %q", got)
				}
			})
		}
	}
}
