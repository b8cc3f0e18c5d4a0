package worker_test

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

// Row C15: TestParity: a program cannot tell by which route its connections come, nor whether it
// runs alone, from the types and errors that it gets: net/http and others assert that
// addresses are *net.TCPAddr.
func TestParity(t *testing.T) {
	for _, c := range []struct {
		name string
		open func(t *testing.T) (ln *worker.Listener, dial func() *net.TCPConn)
	}{
		{"the master routes", func(t *testing.T) (*worker.Listener, func() *net.TCPConn) {
			t.Setenv("HANDFAST_ADDRESS", "127.0.0.1:8080")
			master, ln := mailbox(t, worker.Config{})
			return ln, func() *net.TCPConn { return handOff(t, master, fdpass.TypeHandoff, 1)[0] }
		}},
		{"the kernel routes", func(t *testing.T) (*worker.Listener, func() *net.TCPConn) {
			_, ln, listeners := withListeners(t, 2)
			return ln, func() *net.TCPConn { return dialTo(t, listeners[0]) }
		}},
		{"alone", func(t *testing.T) (*worker.Listener, func() *net.TCPConn) {
			ln, err := worker.Listen(anyPort)
			fdtest.Check(t, err)
			return closing(t, ln), func() *net.TCPConn { return dialTo(t, ln) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			ln, dial := c.open(t)
			if addr, ok := ln.Addr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() || addr.Port == 0 || addr.Network() != "tcp" {
				t.Errorf("the listener's address is %T %v", ln.Addr(), ln.Addr())
			}
			fdtest.Check(t, ln.Ready())
			client := dial()
			conn := accept(t, ln)
			for what, addrs := range map[string][2]net.Addr{
				"local":  {conn.LocalAddr(), client.RemoteAddr()},
				"remote": {conn.RemoteAddr(), client.LocalAddr()},
			} {
				if got, ok := addrs[0].(*net.TCPAddr); !ok || got.String() != addrs[1].String() {
					t.Errorf("%s address %T %v, want %v", what, addrs[0], addrs[0], addrs[1])
				}
			}
			fdtest.Control(t, conn, func(int) error { return nil })
			fdtest.Check(t, conn.SetReadDeadline(time.Unix(1, 0)))
			_, err := conn.Read(make([]byte, 1))
			if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
				t.Errorf("past the deadline: %v", err)
			}
			fdtest.Check(t, conn.SetReadDeadline(time.Time{}))
			fdtest.Check(t, conn.Close())
			if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a connection closed twice: %v", err)
			}

			ended := make(chan error, 1)
			go func() { _, err := ln.Accept(); ended <- err }()
			fdtest.Check(t, ln.Close())
			fdtest.Check(t, ln.Close())
			for _, err := range []error{fdtest.Receive(t, "accept ends", ended), func() error { _, err := ln.Accept(); return err }()} {
				op, ok := errors.AsType[*net.OpError](err)
				if !ok || !errors.Is(err, net.ErrClosed) || op.Op != "accept" || op.Net != "tcp" || op.Addr.String() != ln.Addr().String() || op.Temporary() {
					t.Errorf("accept of a closed listener: %#v", err)
				}
			}
			fdtest.Receive(t, "draining", ln.Draining())
			fdtest.Check(t, ln.Wait(t.Context()))
			if _, ok := ln.Addr().(*net.TCPAddr); !ok || strings.Contains(ln.Addr().String(), "handfast") {
				t.Errorf("after closing the address is %v", ln.Addr())
			}
		})
	}
}
