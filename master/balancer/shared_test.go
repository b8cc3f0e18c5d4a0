package balancer

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// queue returns a listener in whose queue n clients wait, a balancer without workers that refuses at once, and the
// clients.
func queue(t *testing.T, n int) (*net.TCPListener, *Balancer, []net.Conn) {
	t.Helper()
	fdtest.NoLeaks(t)
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	cfg := DefaultConfig()
	cfg.MaxRetries = 0
	b, err := New(cfg, NewTable(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Shutdown(context.Background()) })
	var clients []net.Conn
	for range n {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		clients = append(clients, conn)
	}
	return ln, b, clients
}

// TestRefuseOverdueAsksAgain: three clients are overdue, but a worker that has become ready takes them while the first
// one is refused. Nobody else is refused in their place.
func TestRefuseOverdueAsksAgain(t *testing.T) {
	ln, b, clients := queue(t, 6)
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	overdue := func(waiting int) int {
		switch asked++; asked {
		case 1:
			return 3
		case 2: // meanwhile
			for range 2 {
				conn, err := ln.Accept()
				if err != nil {
					t.Error(err)
				}
				t.Cleanup(func() { conn.Close() })
			}
		default:
			cancel()
		}
		return 0
	}
	if err := b.RefuseOverdue(time.Millisecond, overdue)(ctx, file); err != nil {
		t.Error(err)
	}
	reads(t, clients[0], "HTTP/1.1 502 ")
	if s := b.Stats(); s.Accepted != 1 || s.Refused != 1 {
		t.Errorf("%+v", s)
	}
}

// TestRefuseOverdueMany: of many that are overdue all are refused, and nobody else.
func TestRefuseOverdueMany(t *testing.T) {
	const late, n = 3*refusedAtATime + 2, 3*refusedAtATime + 5
	ln, b, clients := queue(t, n)
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	overdue := func(waiting int) int {
		asked++
		if waiting == n-late {
			cancel()
		}
		return waiting - (n - late)
	}
	if err := b.RefuseOverdue(time.Millisecond, overdue)(ctx, file); err != nil {
		t.Error(err)
	}
	for _, c := range clients[:late] {
		reads(t, c, "HTTP/1.1 502 ")
	}
	if s := b.Stats(); s.Refused != late || asked > late {
		t.Errorf("%+v, asked %d times", s, asked)
	}
}
