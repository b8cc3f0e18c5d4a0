package clientip

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
)

// bound ends every wait that should be short.
const bound = fdtest.Patience

// Clients have documentation addresses (RFC 5737, RFC 3849), and 203.0.113.66 is what
// an attacker would like to be.
const (
	here      = "127.0.0.1" // where tests connect from
	loopback  = "127.0.0.0/8,10.0.0.0/8"
	elsewhere = "10.0.0.0/8" // trusted proxies when we are none
)

// addr is the zero Addr for the empty text.
func addr(text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(text)
}

func trust(t testing.TB, list string) forwarded.Trust {
	t.Helper()
	trusted, err := forwarded.ParseTrust(list)
	fdtest.Check(t, err)
	return trusted
}

// finder returns a Finder that peeks for longer than a test may take, and whose keys are
// not the default ones. change may be nil.
func finder(t testing.TB, rules forwarded.Rules, change func(*Config)) *Finder {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Hash = hash.Config{Seed: 7, IPv4Prefix: 32, IPv6Prefix: 56}
	cfg.Rules, cfg.HeaderTimeout = rules, 30*bound
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	fdtest.Check(t, err)
	return f
}

// from is the client with this address, recognised by it.
func (f *Finder) from(text string) Client {
	return Client{Addr: addr(text), Key: f.cfg.Hash.Key(addr(text))}
}

// pair is a connection: the client's end, and ours as the acceptor has it.
type pair struct {
	fdpass.Handoff
	client *net.TCPConn
	file   *os.File // ours, once it waits in the poller
}

func connect(t testing.TB) *pair {
	t.Helper()
	client, fd := fdtest.Connection(t)
	p := &pair{client: client}
	p.FD = fd
	t.Cleanup(func() {
		if p.file != nil {
			p.file.Close()
		} else {
			unix.Close(p.FD)
		}
	})
	p.Client = client.LocalAddr().(*net.TCPAddr).AddrPort()
	return p
}

// send sends a segment, and returns when it is in our socket.
func (p *pair) send(t testing.TB, text string) {
	t.Helper()
	before := p.unread(t)
	_, err := p.client.Write([]byte(text))
	fdtest.Check(t, err)
	fdtest.Eventually(t, "arrives", func() bool { return p.unread(t) >= before+len(text) })
}

// unread returns how many bytes are in our socket (SIOCINQ, man 7 tcp).
func (p *pair) unread(t testing.TB) int {
	n, err := unix.IoctlGetInt(p.FD, unix.TIOCINQ)
	fdtest.Check(t, err)
	return n
}

// finish sends a FIN, and returns when it is there.
func (p *pair) finish(t testing.TB) {
	t.Helper()
	fdtest.Check(t, p.client.CloseWrite())
	p.reaches(t, unix.BPF_TCP_CLOSE_WAIT)
}

// reset sends an RST, and returns when it is there.
func (p *pair) reset(t testing.TB) {
	t.Helper()
	fdtest.Check(t, p.client.SetLinger(0))
	fdtest.Check(t, p.client.Close())
	p.reaches(t, unix.BPF_TCP_CLOSE)
}

func (p *pair) reaches(t testing.TB, state uint8) {
	t.Helper()
	fdtest.Eventually(t, "end of connection", func() bool {
		info, err := unix.GetsockoptTCPInfo(p.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err == nil && info.State == state
	})
}

// reads fails unless a worker that gets the connection now reads exactly want.
func (p *pair) reads(t testing.TB, want string) {
	t.Helper()
	got := make([]byte, p.unread(t)+1)
	n, err := unix.Read(p.FD, got)
	if want == "" && err == unix.EAGAIN {
		return
	}
	if err != nil || string(got[:n]) != want {
		t.Errorf("the worker reads %.80q (%d bytes), %v, want %.80q (%d bytes)", got[:max(n, 0)], n, err, want, len(want))
	}
}

// inPoller tells whether a Wait has looked and waits for more.
func inPoller() bool {
	for stack := range strings.SplitSeq(fdtest.Stacks(), "\n\n") {
		state, _, _ := strings.Cut(stack, "\n")
		if strings.Contains(state, "[IO wait") && strings.Contains(stack, ".(*Finder).Wait(") {
			return true
		}
	}
	return false
}
