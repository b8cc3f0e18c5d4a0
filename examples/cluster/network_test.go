package cluster_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

const (
	vip     = "192.0.2.80"     // what clients know
	gateway = "198.51.100.1"   // the router's address towards the machines
	clients = "203.0.113.0/24" // where clients are
)

// network is a place for clients, a router, and machines, each a network namespace.
type network struct {
	t      *testing.T
	prefix string // of the namespaces' names
}

// newNetwork needs root. All namespaces are gone when the test has ended.
func newNetwork(t *testing.T, machines int) *network {
	t.Helper()
	trial.Need(t, "ip", "iproute2")
	if os.Getuid() != 0 {
		t.Skip("making network namespaces takes root")
	}
	n := &network{t: t, prefix: fmt.Sprintf("handfast-%d-%s-", os.Getpid(), strings.ToLower(t.Name()[len("Test"):]))}
	n.add("clients")
	n.add("router")
	n.ip("link add wan netns", n.name("clients"), "type veth peer name clients netns", n.name("router"))
	n.in("clients", "ip address add 203.0.113.1/32 dev wan", "ip link set wan up", "ip route add 192.0.2.0/24 dev wan src 203.0.113.1",
		"ip route add local "+clients+" dev lo")
	n.in("router", "ip link set clients up", "ip address add 192.0.2.1/24 dev clients", "ip route add "+clients+" dev clients",
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.clients.proxy_arp=1",
		"ip link add machines address 02:00:00:00:00:01 type bridge", "ip address add "+gateway+"/24 dev machines", "ip link set machines up")
	for i := range machines {
		m := machineName(i)
		n.add(m)
		n.ip("link add eth0 netns", n.name(m), "type veth peer name", m, "netns", n.name("router"))
		n.in("router", "ip link set "+m+" master machines up")
		n.in(m, "ip address add "+machineAddress(i)+"/24 dev eth0", "ip link set eth0 up", "ip route add default via "+gateway)
	}
	return n
}

func machineName(i int) string    { return fmt.Sprintf("m%d", i+1) }
func machineAddress(i int) string { return fmt.Sprintf("198.51.100.%d", 11+i) }

func (n *network) name(place string) string { return n.prefix + place }

func (n *network) add(place string) {
	n.t.Helper()
	n.ip("netns add", n.name(place))
	n.t.Cleanup(func() { exec.Command("ip", "netns", "delete", n.name(place)).Run() })
	n.in(place, "ip link set lo up")
}

// ip runs it with words that may have blanks between them.
func (n *network) ip(words ...string) {
	n.t.Helper()
	out, err := exec.Command("ip", strings.Fields(strings.Join(words, " "))...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(words, " "), err, out)
	}
}

// in runs commands at a place.
func (n *network) in(place string, commands ...string) {
	n.t.Helper()
	for _, command := range commands {
		n.ip("netns exec", n.name(place), command)
	}
}

// start starts a program at a place.
func (n *network) start(place, program string, args ...string) *trial.Process {
	n.t.Helper()
	return trial.Start(n.t, "ip", append([]string{"netns", "exec", n.name(place), program}, args...)...)
}

// dial connects from a client's address. The thread does not stay there, and may not end: programs that it has started would.
func (n *network) dial(ctx context.Context, from netip.Addr, to string) (net.Conn, error) {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	there, err := os.Open("/run/netns/" + n.name("clients"))
	if err != nil {
		return nil, err
	}
	defer there.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, os.NewSyscallError("setns", err)
	}
	defer func() {
		if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
	}()
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	return dialer.DialContext(ctx, "tcp", to)
}

// client returns the i-th one, which keeps connections alive. What takes longer than patience has failed.
func (n *network) client(i int, patience time.Duration) *http.Client {
	from := netip.AddrFrom4([4]byte{203, 0, 113, byte(2 + i)})
	return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
		return n.dial(ctx, from, to)
	}}}
}
