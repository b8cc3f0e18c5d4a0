package worker_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
	"github.com/handfast/handfast/worker/workertest"
)

// bound ends every wait that should be short.
const bound = fdtest.Patience

// childEnv tells this test binary that it is a child, and what it is to do.
const childEnv = "WORKER_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == serveChild {
		os.Exit(serveInChild())
	}
	os.Exit(m.Run())
}

// child prepares this test binary to run with env and with files as its
// descriptors 3 and up.
func child(t *testing.T, files []*os.File, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), append(env, "GORACE=atexit_sleep_ms=0")...)
	return cmd
}

// inChild tells whether this is the child in which the test is to run. Otherwise it
// runs that child, and fails as it does.
func inChild(t *testing.T) bool {
	t.Helper()
	if os.Getenv(childEnv) == t.Name() {
		return true
	}
	cmd := child(t, nil, childEnv+"="+t.Name())
	cmd.Args = append(cmd.Args, "-test.run=^"+t.Name()+"$", "-test.timeout=1m")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in a child process: %v\n%s", err, out)
	}
	return false
}

// read wants exactly this text next.
func read(t testing.TB, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(bound))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); string(got[:n]) != want {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

// write wants all of it written.
func write(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// readEOF wants the end of the connection next.
func readEOF(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(bound))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want EOF", n, err)
	}
}

// accept accepts a connection, which the test's end closes.
func accept(t testing.TB, ln net.Listener) *worker.Conn {
	t.Helper()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*worker.Conn)
}

// closing closes a connection or listener when the test ends.
func closing[C io.Closer](t testing.TB, c C) C {
	t.Cleanup(func() { c.Close() })
	return c
}

// handedOff returns both ends of a connection, the server's handed off.
func handedOff(t testing.TB) (server *worker.Conn, client *net.TCPConn) {
	t.Helper()
	m := workertest.NewMaster(t)
	ln := closing(t, m.Listen())
	client = closing(t, m.Dial())
	return accept(t, ln), client
}

// ordinary returns both ends of a connection of package net.
func ordinary(t testing.TB, address string) (server, client *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip(err) // no IPv6
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	fdtest.Check(t, err)
	s, err := ln.Accept()
	fdtest.Check(t, err)
	return closing(t, s.(*net.TCPConn)), closing(t, c.(*net.TCPConn))
}

const anyPort = "127.0.0.1:0"

// mailbox returns a master's end, and a listener on the worker's end of it.
func mailbox(t testing.TB, c worker.Config) (*fdpass.Conn, *worker.Listener) {
	t.Helper()
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	closing(t, master)
	c.Mailbox = file
	ln, err := c.Listen()
	fdtest.Check(t, err)
	return master, closing(t, ln)
}

// handOff hands off n new connections in one message, and returns the clients'
// ends.
func handOff(t testing.TB, master *fdpass.Conn, typ fdpass.Type, n int) (clients []*net.TCPConn) {
	t.Helper()
	var batch []fdpass.Handoff
	for range n {
		server, client := ordinary(t, anyPort)
		clients = append(clients, client)
		batch = append(batch, fdpass.Handoff{FD: fdtest.Duplicate(t, server), Client: addrPort(client.LocalAddr())})
		server.Close()
	}
	defer fdpass.CloseHandoffs(batch)
	fdtest.Check(t, master.TrySend(typ, batch))
	return clients
}

// next returns the worker's next message.
func next(t testing.TB, master *fdpass.Conn) fdpass.Message {
	t.Helper()
	var m fdpass.Message
	master.SetReceiveDeadline(time.Now().Add(bound))
	fdtest.Check(t, master.Receive(&m))
	return m
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// pattern returns bytes in which any displacement shows.
func pattern(n int) []byte {
	b := slices.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
	for i := 0; i+3 < n; i += 1 << 10 {
		b[i], b[i+1], b[i+2] = byte(i>>10), byte(i>>18), byte(i>>26)
	}
	return b
}
