// Package workertest is a master in memory, for tests of programs that use
// package worker: no process, no fixed port.
//
//	m := workertest.NewMaster(t)
//	go server.Serve(m.Listen())
//	conn := m.Dial() // a client whose connection was handed to the server
//	m.Drain()        // as in a reload
package workertest

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/worker"
)

// timeout bounds everything that should be immediate.
const timeout = 10 * time.Second

// Master hands connections to one worker. Its methods fail the test on errors. What
// it opened is closed when the test ends.
type Master struct {
	t    testing.TB
	conn *fdpass.Conn
	file *os.File // the worker's end, until Mailbox gives it away
	ln   *net.TCPListener
}

// NewMaster returns a master without a worker.
func NewMaster(t testing.TB) *Master {
	t.Helper()
	conn, file, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	m := &Master{t: t, conn: conn, file: file, ln: ln}
	t.Cleanup(func() {
		conn.Close()
		ln.Close()
		if m.file != nil {
			m.file.Close()
		}
	})
	return m
}

// Listen returns a listener that accepts what Dial hands off. The test closes it.
func (m *Master) Listen() *worker.Listener {
	m.t.Helper()
	ln, err := worker.Config{Mailbox: m.Mailbox()}.Listen()
	if err != nil {
		m.t.Fatal(err)
	}
	return ln
}

// Mailbox returns the worker's end, for worker.Config. The caller owns it.
func (m *Master) Mailbox() *os.File {
	m.t.Helper()
	file := m.file
	if file == nil {
		m.t.Fatal("workertest: a master has one mailbox, and it was taken")
	}
	m.file = nil
	return file
}

// WaitReady waits until the worker has said that it is ready.
func (m *Master) WaitReady() {
	m.t.Helper()
	if msg := m.Receive(); msg.Type != fdpass.TypeReady {
		m.t.Fatalf("workertest: the worker said %v, want ready", msg.Type)
	}
}

// Receive returns the worker's next message. The caller owns its descriptors.
func (m *Master) Receive() fdpass.Message {
	m.t.Helper()
	var msg fdpass.Message
	m.conn.SetReceiveDeadline(time.Now().Add(timeout))
	if err := m.conn.Receive(&msg); err != nil {
		m.t.Fatal(err)
	}
	return msg
}

// Dial connects a client and hands its connection to the worker. The test closes
// the client's end, which is what Dial returns.
func (m *Master) Dial() *net.TCPConn {
	m.t.Helper()
	client, server := m.connect()
	m.handOff(server, server.RemoteAddr().(*net.TCPAddr).AddrPort(), 0)
	return client
}

// DialAs is Dial for a connection that comes through a trusted proxy, which says
// that the client is this one.
func (m *Master) DialAs(client netip.AddrPort) *net.TCPConn {
	m.t.Helper()
	conn, server := m.connect()
	m.handOff(server, client, fdpass.FlagProxied)
	return conn
}

// Drain tells the worker that no more connections follow.
func (m *Master) Drain() {
	m.t.Helper()
	if err := m.conn.CloseWrite(); err != nil {
		m.t.Fatal(err)
	}
}

// connect returns both ends of a new connection.
func (m *Master) connect() (client, server *net.TCPConn) {
	m.t.Helper()
	client, err := net.DialTCP("tcp", nil, m.ln.Addr().(*net.TCPAddr))
	if err != nil {
		m.t.Fatal(err)
	}
	m.ln.SetDeadline(time.Now().Add(timeout))
	server, err = m.ln.AcceptTCP()
	if err != nil {
		client.Close()
		m.t.Fatal(err)
	}
	return client, server
}

// handOff sends a connection and closes our copy.
func (m *Master) handOff(server *net.TCPConn, client netip.AddrPort, flags fdpass.Flags) {
	m.t.Helper()
	defer server.Close()
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	err := sock.Control(server, func(fd int) error {
		return m.conn.TrySend(fdpass.TypeHandoff, []fdpass.Handoff{{FD: fd, Client: client, Flags: flags}})
	})
	if err != nil {
		m.t.Fatal(err)
	}
}
