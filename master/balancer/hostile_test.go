package balancer

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
)

// TestLingeringReadmitted: a connection that has come back from a worker lingers, with data that its client
// does not read. It is refused, and closing it holds up nobody who wants the lock.
//
// Row A5.
func TestLingeringReadmitted(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"refused":            func(c *Config) { c.MaxRetries = 0 },
		"refused by closing": func(c *Config) { c.MaxRetries, c.Refuse = 0, RefuseClose },
		"no room":            func(c *Config) { c.MaxParked = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			b, _, stop := serveTest(t, NewTable(1), change)
			defer stop()
			conn, client := fdtest.TCPPair(t)
			defer client.Close()
			fd := fdtest.Duplicate(t, conn)
			conn.Close()
			for data := make([]byte, 1<<20); ; {
				if _, err := unix.Write(fd, data); err != nil {
					break
				}
			}
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 6000}); err != nil {
				t.Fatal(err)
			}
			over := make(chan struct{})
			go func() {
				defer close(over)
				reexec.Lock.RLock()
				b.Readmit([]fdpass.Handoff{{FD: fd, Client: conn.RemoteAddr().(*net.TCPAddr).AddrPort()}})
				reexec.Lock.RUnlock()
				for b.Stats().Refused == 0 || b.Stats().Parked > 0 {
					time.Sleep(time.Millisecond)
				}
				reexec.Lock.Lock()
				defer reexec.Lock.Unlock()
			}()
			select {
			case <-over:
			case <-time.After(testPatience):
				t.Fatal("the lock is held")
			}
		})
	}
}

// TestReadmittedClient: whom a connection is from that comes back is not for the worker to say, which could place a
// client of its choice in any slot.
func TestReadmittedClient(t *testing.T) {
	for name, v := range map[string]struct {
		proxied bool // the master reads PROXY headers
		flags   fdpass.Flags
		want    string
	}{
		"its own word":                  {false, 0, "127.0.0.1"},
		"said to be a proxy's":          {false, fdpass.FlagProxied, "127.0.0.1"},
		"its own word, behind a proxy":  {true, 0, "127.0.0.1"},
		"of a PROXY header, as we know": {true, fdpass.FlagProxied, "203.0.113.9"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.Clients.ProxyProtocol = v.proxied
			b, err := New(cfg, NewTable(1))
			if err != nil {
				t.Fatal(err)
			}
			conn, client := fdtest.TCPPair(t)
			defer client.Close()
			defer conn.Close()
			h := fdpass.Handoff{FD: fdtest.Duplicate(t, conn), Client: netip.MustParseAddrPort("203.0.113.9:1"), Flags: v.flags}
			defer unix.Close(h.FD)
			peer, _ := sock.Peer(h.FD)
			if got := b.believe(h, peer, false); got.Client.Addr().String() != v.want || got.FD != h.FD {
				t.Errorf("%+v, want a client %s", got, v.want)
			}
		})
	}
}
