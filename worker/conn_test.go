package worker_test

import (
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
	"github.com/handfast/handfast/worker/workertest"
)

// tcpConn is what a *worker.Conn and a *net.TCPConn have in common.
type tcpConn interface {
	net.Conn
	io.ReaderFrom
	io.WriterTo
	syscall.Conn
	CloseRead() error
	CloseWrite() error
	File() (*os.File, error)
	SetKeepAlive(bool) error
	SetKeepAliveConfig(net.KeepAliveConfig) error
	SetKeepAlivePeriod(time.Duration) error
	SetLinger(int) error
	SetNoDelay(bool) error
	SetReadBuffer(int) error
	SetWriteBuffer(int) error
}

func TestConn(t *testing.T) {
	fdtest.NoLeaks(t)
	pipe := func() (server, client net.Conn, stop func(), err error) {
		m := workertest.NewMaster(t)
		ln := m.Listen()
		client = m.Dial()
		server, err = ln.Accept()
		return server, client, func() { server.Close(); client.Close(); ln.Close() }, err
	}
	t.Run("server", func(t *testing.T) { nettest.TestConn(t, pipe) })
	t.Run("client", func(t *testing.T) {
		nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
			server, client, stop, err := pipe()
			return client, server, stop, err
		})
	})
}

// A program that asks a net.Conn for more than net.Conn's methods, as net/http and
// many proxies do, finds what a *net.TCPConn has.
func TestMethodSet(t *testing.T) {
	ours := reflect.TypeFor[*worker.Conn]()
	for theirs := range reflect.TypeFor[*net.TCPConn]().Methods() {
		if theirs.Name == "MultipathTCP" { // the master's listeners do without
			continue
		}
		if got, ok := ours.MethodByName(theirs.Name); !ok || !sameSignature(got.Type, theirs.Type) {
			t.Errorf("%s: have %v, want %v", theirs.Name, got.Type, theirs.Type)
		}
		if _, ok := calls[theirs.Name]; !ok && theirs.Type.NumOut() > 0 && theirs.Type.Out(theirs.Type.NumOut()-1) == reflect.TypeFor[error]() {
			t.Errorf("%s is not in the table of calls", theirs.Name)
		}
	}
}

// sameSignature compares methods of different types.
func sameSignature(a, b reflect.Type) bool {
	same := a.NumIn() == b.NumIn() && a.NumOut() == b.NumOut()
	for i := 1; same && i < a.NumIn(); i++ {
		same = a.In(i) == b.In(i)
	}
	for i := 0; same && i < a.NumOut(); i++ {
		same = a.Out(i) == b.Out(i)
	}
	return same
}

// calls has every method that can fail.
var calls = map[string]func(tcpConn) error{
	"Read":               func(c tcpConn) error { _, err := c.Read(make([]byte, 9)); return err },
	"Write":              func(c tcpConn) error { _, err := c.Write([]byte("hello")); return err },
	"ReadFrom":           func(c tcpConn) error { _, err := c.ReadFrom(strings.NewReader("hello")); return err },
	"WriteTo":            func(c tcpConn) error { _, err := c.WriteTo(io.Discard); return err },
	"Close":              func(c tcpConn) error { return c.Close() },
	"CloseRead":          func(c tcpConn) error { return c.CloseRead() },
	"CloseWrite":         func(c tcpConn) error { return c.CloseWrite() },
	"SetDeadline":        func(c tcpConn) error { return c.SetDeadline(time.Time{}) },
	"SetReadDeadline":    func(c tcpConn) error { return c.SetReadDeadline(time.Time{}) },
	"SetWriteDeadline":   func(c tcpConn) error { return c.SetWriteDeadline(time.Time{}) },
	"SetKeepAlive":       func(c tcpConn) error { return c.SetKeepAlive(true) },
	"SetKeepAliveConfig": func(c tcpConn) error { return c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true}) },
	"SetKeepAlivePeriod": func(c tcpConn) error { return c.SetKeepAlivePeriod(time.Minute) },
	"SetLinger":          func(c tcpConn) error { return c.SetLinger(1) },
	"SetNoDelay":         func(c tcpConn) error { return c.SetNoDelay(false) },
	"SetReadBuffer":      func(c tcpConn) error { return c.SetReadBuffer(1 << 14) },
	"SetWriteBuffer":     func(c tcpConn) error { return c.SetWriteBuffer(1 << 14) },
	"File": func(c tcpConn) error {
		f, err := c.File()
		if err == nil {
			f.Close()
		}
		return err
	},
	"SyscallConn": func(c tcpConn) error {
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(uintptr) {})
		}
		return err
	},
	"SyscallConn, Read": func(c tcpConn) error {
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Read(func(uintptr) bool { return true })
		}
		return err
	},
	"SyscallConn, Write": func(c tcpConn) error {
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Write(func(uintptr) bool { return true })
		}
		return err
	},
}

// Whatever fails, it fails as a *net.TCPConn does: the same operation and system
// call, and the same cause.
func TestErrorsAreThoseOfNet(t *testing.T) {
	fdtest.NoLeaks(t)
	states := map[string]func(server tcpConn, client *net.TCPConn){
		"open":     func(_ tcpConn, client *net.TCPConn) { write(t, client, "hello"); client.CloseWrite() },
		"closed":   func(server tcpConn, _ *net.TCPConn) { server.Close() },
		"deadline": func(server tcpConn, _ *net.TCPConn) { server.SetDeadline(time.Now()) },
		"reset":    func(server tcpConn, client *net.TCPConn) { reset(t, server, client) },
		"shut":     func(server tcpConn, _ *net.TCPConn) { server.CloseWrite(); server.CloseRead() },
	}
	for state, prepare := range states {
		for name, call := range calls {
			t.Run(state+"/"+name, func(t *testing.T) {
				ours, client := handedOff(t)
				prepare(ours, client)
				theirs, client := ordinary(t, anyPort)
				prepare(theirs, client)
				got, want := call(ours), call(theirs)
				if chain(got) != chain(want) {
					t.Errorf("got %v (%s), want as %v (%s)", got, chain(got), want, chain(want))
				}
				if _, ok := got.(*net.OpError); !ok && got != nil && got != io.EOF {
					t.Errorf("%T is not a *net.OpError", got)
				}
			})
		}
	}
}

// chain says what an error is made of, without the addresses.
func chain(err error) string {
	var parts []string
	for ; err != nil; err = errors.Unwrap(err) {
		switch e := err.(type) {
		case *net.OpError:
			parts = append(parts, e.Op)
		case *os.SyscallError:
			parts = append(parts, e.Syscall)
		default:
			parts = append(parts, err.Error())
		}
	}
	return strings.Join(parts, ": ")
}

// reset makes the client reset the connection, and waits until it did.
func reset(t *testing.T, server tcpConn, client *net.TCPConn) {
	t.Helper()
	client.SetLinger(0)
	client.Close()
	const tcpClose = 7 // TCP_CLOSE
	fdtest.Eventually(t, "reset", func() bool {
		var info *unix.TCPInfo
		fdtest.Control(t, server, func(fd int) (err error) {
			info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			return err
		})
		return info.State == tcpClose
	})
}

// The same in the words that programs use.
func TestErrorsMatch(t *testing.T) {
	fdtest.NoLeaks(t)
	c, client := handedOff(t)
	local, remote := c.LocalAddr().String(), c.RemoteAddr().String()
	c.SetReadDeadline(time.Now())
	_, err := c.Read(make([]byte, 1))
	if ne, ok := err.(net.Error); !ok || !ne.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	reset(t, c, client)
	_, err = c.Read(make([]byte, 1))
	if want := "read tcp " + local + "->" + remote + ": read: connection reset by peer"; !errors.Is(err, unix.ECONNRESET) || err.Error() != want {
		t.Errorf("after a reset: %v, want %s", err, want)
	}
	c.Close()
	if _, err = c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if got := c.LocalAddr().String(); got != local {
		t.Errorf("local address after Close is %s, was %s", got, local)
	}
}

// Close wakes a Read that waits, also one of a raw connection.
func TestCloseWakes(t *testing.T) {
	fdtest.NoLeaks(t)
	c, _ := handedOff(t)
	raw, err := c.SyscallConn()
	fdtest.Check(t, err)
	failed := make(chan error, 2)
	reading := make(chan struct{})
	go func() {
		failed <- raw.Read(func(uintptr) bool { close(reading); return false })
	}()
	fdtest.Receive(t, "raw read", reading)
	go func() { _, err := c.Read(make([]byte, 1)); failed <- err }()
	c.Close()
	for range 2 {
		if err := fdtest.Receive(t, "read", failed); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
}

type option struct{ level, name int }

var (
	noDelay   = option{unix.IPPROTO_TCP, unix.TCP_NODELAY}
	keepAlive = option{unix.SOL_SOCKET, unix.SO_KEEPALIVE}
	keepIdle  = option{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}
	keepIntvl = option{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}
	keepCount = option{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}
	linger    = option{unix.SOL_SOCKET, unix.SO_LINGER}
	readBuf   = option{unix.SOL_SOCKET, unix.SO_RCVBUF}
	writeBuf  = option{unix.SOL_SOCKET, unix.SO_SNDBUF}
)

// options asks the kernel what is set. Of struct linger, the number has the seconds
// in its upper half.
func options(t *testing.T, c syscall.Conn) map[option]uint64 {
	t.Helper()
	set := make(map[option]uint64)
	fdtest.Control(t, c, func(fd int) error {
		var errs [8]error
		for i, o := range []option{noDelay, keepAlive, keepIdle, keepIntvl, keepCount, linger, readBuf, writeBuf} {
			set[o], errs[i] = unix.GetsockoptUint64(fd, o.level, o.name)
		}
		return errors.Join(errs[:]...)
	})
	return set
}

// Options are set in the kernel, and as a *net.TCPConn sets them.
func TestOptions(t *testing.T) {
	fdtest.NoLeaks(t)
	config := func(enable bool, idle, interval time.Duration, count int) func(tcpConn) error {
		return func(c tcpConn) error {
			return c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: enable, Idle: idle, Interval: interval, Count: count})
		}
	}
	for _, test := range []struct {
		name string
		set  func(tcpConn) error
		want map[option]uint64
	}{
		{"from the start", func(tcpConn) error { return nil }, map[option]uint64{noDelay: 1, keepAlive: 1, keepIdle: 15, keepIntvl: 15, keepCount: 9}},
		{"Nagle", func(c tcpConn) error { return c.SetNoDelay(false) }, map[option]uint64{noDelay: 0}},
		{"no keep-alive", func(c tcpConn) error { return c.SetKeepAlive(false) }, map[option]uint64{keepAlive: 0}},
		{"period", func(c tcpConn) error { return c.SetKeepAlivePeriod(time.Minute + 1) }, map[option]uint64{keepIdle: 61, keepIntvl: 15, keepCount: 9}},
		{"period 0", func(c tcpConn) error { return errors.Join(c.SetKeepAlivePeriod(time.Hour), c.SetKeepAlivePeriod(0)) }, map[option]uint64{keepIdle: 15}},
		{"period < 0", func(c tcpConn) error { return errors.Join(c.SetKeepAlivePeriod(time.Hour), c.SetKeepAlivePeriod(-1)) }, map[option]uint64{keepIdle: 3600}},
		{"config", config(true, time.Minute, 1500*time.Millisecond, 3), map[option]uint64{keepAlive: 1, keepIdle: 60, keepIntvl: 2, keepCount: 3}},
		{"config 0", func(c tcpConn) error {
			return errors.Join(config(true, time.Minute, time.Second, 3)(c), config(true, 0, 0, 0)(c))
		}, map[option]uint64{keepIdle: 15, keepIntvl: 15, keepCount: 9}},
		{"config < 0", func(c tcpConn) error {
			return errors.Join(config(true, time.Minute, time.Second, 3)(c), config(false, -1, -1, -1)(c))
		}, map[option]uint64{keepAlive: 0, keepIdle: 60, keepIntvl: 1, keepCount: 3}},
		{"linger", func(c tcpConn) error { return c.SetLinger(5) }, map[option]uint64{linger: 1 | 5<<32}},
		{"linger 0", func(c tcpConn) error { return c.SetLinger(0) }, map[option]uint64{linger: 1}},
		{"linger < 0", func(c tcpConn) error { return errors.Join(c.SetLinger(0), c.SetLinger(-1)) }, map[option]uint64{linger: 0}},
		{"read buffer", func(c tcpConn) error { return c.SetReadBuffer(1 << 15) }, map[option]uint64{readBuf: 1 << 16}}, // man 7 socket: doubled
		{"write buffer", func(c tcpConn) error { return c.SetWriteBuffer(1 << 15) }, map[option]uint64{writeBuf: 1 << 16}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ours, _ := handedOff(t)
			theirs, _ := ordinary(t, anyPort)
			fdtest.Check(t, test.set(ours))
			fdtest.Check(t, test.set(theirs))
			got := options(t, ours)
			for o, want := range test.want {
				if got[o] != want {
					t.Errorf("option %v is %d, want %d", o, got[o], want)
				}
			}
			if want := options(t, theirs); !maps.Equal(got, want) {
				t.Errorf("options are %v, package net's %v", got, want)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	fdtest.NoLeaks(t)
	c, client := handedOff(t)
	if got, want := c.LocalAddr().String(), client.RemoteAddr().String(); got != want || c.LocalAddr().Network() != "tcp" {
		t.Errorf("local address %s, want %s", got, want)
	}
	if got, want := c.RemoteAddr().String(), client.LocalAddr().String(); got != want || c.Proxied() {
		t.Errorf("remote address %s, proxied %v; want %s, false", got, c.Proxied(), want)
	}
	for _, test := range []struct{ said, want string }{
		{"192.0.2.1:443", "192.0.2.1:443"},
		{"[::ffff:192.0.2.1]:443", "192.0.2.1:443"},
		{"[2001:db8::1]:443", "[2001:db8::1]:443"},
		{"[fe80::1%2]:443", "[fe80::1%2]:443"},
	} {
		m := workertest.NewMaster(t)
		ln := closing(t, m.Listen())
		closing(t, m.DialAs(netip.MustParseAddrPort(test.said)))
		c := accept(t, ln)
		if _, ok := c.RemoteAddr().(*net.TCPAddr); !ok || c.RemoteAddr().String() != test.want || !c.Proxied() {
			t.Errorf("remote address %T %v, proxied %v; want %s, true", c.RemoteAddr(), c.RemoteAddr(), c.Proxied(), test.want)
		}
	}
}

// A master may not know the client; and a connection may be of IPv6.
func TestAddressesUnknownAndIPv6(t *testing.T) {
	fdtest.NoLeaks(t)
	for _, address := range []string{anyPort, "[::1]:0"} {
		master, ln := mailbox(t, worker.Config{})
		server, client := ordinary(t, address)
		h := fdpass.Handoff{FD: fdtest.Duplicate(t, server)}
		fdtest.Check(t, master.TrySend(fdpass.TypeHandoff, []fdpass.Handoff{h}))
		unix.Close(h.FD)
		c := accept(t, ln)
		if got, want := c.RemoteAddr().String(), client.LocalAddr().String(); got != want {
			t.Errorf("remote address %s, want the peer %s", got, want)
		}
		if got, want := c.LocalAddr().String(), server.LocalAddr().String(); got != want {
			t.Errorf("local address %s, want %s", got, want)
		}
	}
}

func TestFileIsIndependent(t *testing.T) {
	fdtest.NoLeaks(t)
	c, client := handedOff(t)
	f, err := c.File()
	fdtest.Check(t, err)
	closing(t, f)
	fdtest.Check(t, c.Close())
	_, err = f.WriteString("from the file")
	fdtest.Check(t, err)
	read(t, client, "from the file")
	fdtest.Check(t, f.Close())
	readEOF(t, client)

	c, client = handedOff(t)
	f, err = c.File()
	fdtest.Check(t, err)
	fdtest.Check(t, f.Close())
	write(t, c, "from the connection")
	read(t, client, "from the connection")
}

func TestHalfClose(t *testing.T) {
	fdtest.NoLeaks(t)
	c, client := handedOff(t)
	fdtest.Check(t, c.CloseWrite())
	readEOF(t, client)
	write(t, client, "still read")
	read(t, c, "still read")
	client.CloseWrite()
	readEOF(t, c)
}
