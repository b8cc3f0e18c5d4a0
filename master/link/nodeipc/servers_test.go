package nodeipc

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestServers: which servers a program may have on the balancer's port, as under Node's cluster,
// and the addresses that they are told.
func TestServers(t *testing.T) {
	const all = "null"
	for _, test := range []struct {
		balancer, servers string // addresses
		want              string // what each is told: an address, or an error
	}{
		{"127.0.0.1", all, "127.0.0.1"},
		{"127.0.0.1", "0.0.0.0", "127.0.0.1"},
		{"127.0.0.1", "192.0.2.1", "127.0.0.1"}, // the first is taken as it is
		{"127.0.0.1", "::1 127.0.0.1", "127.0.0.1 127.0.0.1"},
		{"127.0.0.1", "127.0.0.1 ::1", "127.0.0.1 EADDRNOTAVAIL"},
		{"127.0.0.1 ::1", "127.0.0.1 ::1", "127.0.0.1 ::1"},
		{"127.0.0.1 ::1", "::1 127.0.0.1 ::1", "::1 127.0.0.1 EADDRINUSE"},
		{"127.0.0.1 ::1", "0.0.0.0 ::1", "127.0.0.1 ::1"},
		{"127.0.0.1 ::1", "0.0.0.0 127.0.0.1", "127.0.0.1 EADDRINUSE"},
		{"127.0.0.1 ::1", "0.0.0.0 ::/only6", "127.0.0.1 ::1"},
		{"127.0.0.1 ::1", "0.0.0.0 ::", "127.0.0.1 EADDRINUSE"},
		{"127.0.0.1 ::1", all + " ::1", "127.0.0.1 EADDRINUSE"},
		{"127.0.0.1 127.0.0.2", "127.0.0.1 127.0.0.2 127.0.0.1", "127.0.0.1 127.0.0.2 EADDRINUSE"},
		{"0.0.0.0", "0.0.0.0 ::1", "0.0.0.0 EADDRNOTAVAIL"},
		// Row B2: a server for one address does not get the connections of all.
		{"::", "127.0.0.1", "EADDRNOTAVAIL"},
		{"::", "::1", "EADDRNOTAVAIL"},
		{"::", "::ffff:127.0.0.1", "EADDRNOTAVAIL"},
		{"0.0.0.0", "192.0.2.1", "EADDRNOTAVAIL"},
		{"192.0.2.1", "127.0.0.1", "EADDRNOTAVAIL"},
		{"::", "0.0.0.0", "::"},
		{"127.0.0.1", all + " " + all, "127.0.0.1 EADDRINUSE"},
		{"127.0.0.1", "nonsense ::ffff:127.0.0.1", "127.0.0.1 127.0.0.1"},
	} {
		t.Run(test.balancer+"/"+test.servers, func(t *testing.T) {
			p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
			p.ports[port] = nil
			for text := range strings.FieldsSeq(test.balancer) {
				p.ports[port] = append(p.ports[port], netip.AddrPortFrom(netip.MustParseAddr(text), port))
			}
			l, w := p.openLink(t)
			over := make(chan struct{})
			var told sync.WaitGroup
			told.Go(func() { // what is refused is answered when the worker is told to finish
				select {
				case <-l.Left():
					l.Drain()
				case <-over:
				}
			})
			t.Cleanup(func() { close(over); told.Wait() })
			var got []string
			for i, text := range strings.Fields(test.servers) {
				got = append(got, answered(w.asks(i, text)))
			}
			if got := strings.Join(got, " "); got != test.want {
				t.Errorf("told %s, want %s", got, test.want)
			}
		})
	}
}

// asks sends a query for the balancer's port and an address, and returns the answer.
func (w *fakeWorker) asks(index int, address string) heard {
	w.t.Helper()
	address, only6 := strings.CutSuffix(address, "/only6")
	quoted, flags := fmt.Sprintf("%q", address), 0
	if address == "null" {
		quoted = address
	}
	if only6 {
		flags = ipv6Only
	}
	w.sayf(`{"cmd":"NODE_CLUSTER","act":"queryServer","index":%d,"data":null,"address":%s,"port":%d,"addressType":4,"flags":%d,"seq":1}`, index, quoted, port, flags)
	return w.hear()
}

func answered(m heard) string {
	if m.Sockname != nil {
		return m.Sockname.Address
	}
	return unix.ErrnoName(unix.Errno(-m.Errno))
}

// TestServersLimit: however many a program asks for.
func TestServersLimit(t *testing.T) {
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	p.ports[port] = nil
	for i := range maxServers + 1 {
		p.ports[port] = append(p.ports[port], netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}), port))
	}
	_, w := p.openLink(t)
	for i := range maxServers + 1 {
		address := fmt.Sprintf("127.0.1.%d", i)
		want := address
		if i == maxServers {
			want = "EMFILE"
		}
		if got := answered(w.asks(0, address)); got != want {
			t.Fatalf("server %d is told %s", i, got)
		}
	}
}

// TestSharedLimit: nor do listeners of their own use up the master's files. Their data is not kept
// without bounds.
func TestSharedLimit(t *testing.T) {
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	_, w := p.openLink(t)
	for i := range maxShared + 1 {
		w.sayf(`{"cmd":"NODE_CLUSTER","act":"queryServer","index":%d,"data":null,"address":"127.0.0.1","port":0,"addressType":4,"seq":8}`, i)
		m := w.hear()
		if want := i == maxShared; (m.Errno == -int(unix.EMFILE)) != want {
			t.Fatalf("listener %d: %+v", i, m)
		}
		if m.fd >= 0 {
			unix.Close(m.fd)
			w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
		}
	}
	for i := range 2 * maxKnown {
		p.dataOf(fmt.Sprint(i), []byte(`"data"`))
	}
	p.dataOf("long", make([]byte, maxData+1))
	if n := len(p.data); n != maxKnown {
		t.Errorf("data of %d listeners is kept", n)
	}
}

// TestByAddress: with several servers a connection goes to the one that listens on the address
// which the client has called.
func TestByAddress(t *testing.T) {
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	addresses := []string{"127.0.0.2", "127.0.0.1", "::1"}
	p.ports[port] = nil
	for _, address := range addresses {
		p.ports[port] = append(p.ports[port], netip.AddrPortFrom(netip.MustParseAddr(address), port))
	}
	l, w := p.openLink(t)
	keys := make(map[string]string)
	for i, address := range addresses {
		keys[address] = w.asks(i, address).Key
	}
	ln, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, at, _ := net.SplitHostPort(ln.Addr().String())
	for called, want := range map[string]string{"127.0.0.1": "127.0.0.1", "127.0.0.2": "127.0.0.2", "::1": "::1", "127.0.0.3": "127.0.0.2"} {
		client, err := net.Dial("tcp", net.JoinHostPort(called, at))
		if err != nil {
			t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		fd := fdtest.Duplicate(t, server.(*net.TCPConn))
		server.Close()
		deliver(t, l, []fdpass.Handoff{{FD: fd}})
		m := w.hear()
		if m.inner().Key != keys[want] {
			t.Errorf("who calls %s comes to %s", called, m.inner().Key)
		}
		unix.Close(m.fd)
		w.accepts(m.inner().Seq)
		client.Close()
	}
}
