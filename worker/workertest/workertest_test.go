package workertest_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/worker"
	"github.com/handfast/handfast/worker/workertest"
)

// serve answers each connection with the client's address.
func serve(t *testing.T, ln net.Listener) <-chan error {
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				ended <- err
				return
			}
			io.WriteString(c, c.RemoteAddr().String())
			c.Close()
		}
	}()
	return ended
}

func answer(t *testing.T, c net.Conn) string {
	t.Helper()
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMaster(t *testing.T) {
	m := workertest.NewMaster(t)
	ln := m.Listen()
	defer ln.Close()
	ended := serve(t, ln)
	m.WaitReady()
	client := m.Dial()
	if got, want := answer(t, client), client.LocalAddr().String(); got != want {
		t.Errorf("the server saw %s, want %s", got, want)
	}
	if got, want := answer(t, m.DialAs(netip.MustParseAddrPort("192.0.2.1:5"))), "192.0.2.1:5"; got != want {
		t.Errorf("the server saw %s, want %s", got, want)
	}
	m.Drain()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want ErrClosed", err)
	}
	if err := ln.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMailboxAndReceive(t *testing.T) {
	m := workertest.NewMaster(t)
	ln, err := worker.Config{Mailbox: m.Mailbox(), ManualReady: true}.Listen()
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if msg := m.Receive(); msg.Type != fdpass.TypeLeave {
		t.Errorf("the worker said %s, want leave", msg.Type)
	}
}
