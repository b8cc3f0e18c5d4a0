package worker

import (
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// Conn is a handed-off TCP connection, or one of a Unix socket that the master listens on. It has the methods of *net.TCPConn, except
// MultipathTCP, and behaves the same, including its errors.
//
// It is not a *net.TCPConn because package net makes one from a descriptor only
// by duplicating it and asking the kernel what it is, which takes about 5 µs, as
// long as all the rest of receiving and closing a connection of a large batch
// (BenchmarkFileConn). An os.File around a non-blocking socket uses the same poller.
type Conn struct {
	socket   atomic.Pointer[socket] // first, or of look another one when it has come back
	first    socket
	listener *Listener
	local    netip.AddrPort // asked for at once: net/http wants it, and so do errors after Close
	remote   netip.AddrPort
	addrs    atomic.Pointer[[2]net.Addr] // local and remote, once they were asked for
	flags    fdpass.Flags
	closed   atomic.Bool
	details  fdpass.Details
	look     *look        // at its requests; nil: they belong here
	phase    atomic.Int32 // a phase; of traffic
}

func newConn(l *Listener, h fdpass.Handoff) *Conn {
	c := &Conn{listener: l, first: openSocket(h.FD), remote: h.Client, flags: h.Flags, details: h.Details}
	c.socket.Store(&c.first)
	c.local, _ = sock.Local(h.FD)
	if !c.remote.IsValid() {
		c.remote, _ = sock.Peer(h.FD)
	}
	c.look = newLook(c, l.back)
	return c
}

// Read reads from the connection, as net.Conn says.
func (c *Conn) Read(b []byte) (int, error) {
	read := c.socket.Load().Read
	if c.look != nil {
		read = c.look.read
	}
	n, err := read(b)
	return n, c.wrap("read", err)
}

// Write writes to the connection, as net.Conn says.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.socket.Load().Write(b)
	return n, c.wrap("write", err)
}

// Close closes the connection.
func (c *Conn) Close() error {
	again := c.closed.Swap(true)
	err := c.wrap("close", c.socket.Load().Close())
	if !again {
		c.listener.spread.remove(c)
	}
	if !again && (c.look == nil || !c.look.back.remove(c.look)) {
		c.listener.count(-1)
	}
	return err
}

// LocalAddr returns the address that the client connected to: a *net.TCPAddr, or a *net.UnixAddr without a name.
func (c *Conn) LocalAddr() net.Addr { return c.addresses()[0] }

// RemoteAddr returns the client's address: the socket's peer, or what a trusted
// proxy told the master about the client. The zone of a link-local address is the
// number of the interface. The peer of a Unix socket has none, and is a *net.UnixAddr whose text is "@", as that of
// package net's own.
func (c *Conn) RemoteAddr() net.Addr { return c.addresses()[1] }

// addresses returns local and remote. They are made once: package http has an error for each request, by which it ends its reading
// ahead.
func (c *Conn) addresses() *[2]net.Addr {
	if made := c.addrs.Load(); made != nil {
		return made
	}
	made := &[2]net.Addr{net.TCPAddrFromAddrPort(c.local), net.TCPAddrFromAddrPort(c.remote)}
	if c.isUnix() {
		made[0] = unixLocal
		if !c.remote.IsValid() {
			made[1] = unixPeer
		}
	}
	c.addrs.Store(made)
	return made
}

// What connections of the master's Unix sockets have as addresses, and no others.
var (
	unixLocal net.Addr = &net.UnixAddr{Net: "unix"}
	unixPeer  net.Addr = &net.UnixAddr{Net: "unix", Name: "@"}
)

// isUnix tells whether it is a Unix socket. The master says so.
func (c *Conn) isUnix() bool { return c.flags&fdpass.FlagUnix != 0 }

// source is where it is from, as forwarded.Rules want it.
func (c *Conn) source() netip.Addr {
	h := fdpass.Handoff{Client: c.remote, Flags: c.flags}
	return h.Source()
}

// Proxied tells whether the socket's peer is a trusted proxy that said, by the PROXY
// protocol, whose connection it is: RemoteAddr's, which may be its own.
func (c *Conn) Proxied() bool { return c.flags&fdpass.FlagProxied != 0 }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.wrap("set", c.socket.Load().SetDeadline(t)) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.wrap("set", c.socket.Load().SetReadDeadline(t))
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.wrap("set", c.socket.Load().SetWriteDeadline(t))
}

// CloseRead shuts down the reading side.
func (c *Conn) CloseRead() error { return c.shutdown(unix.SHUT_RD) }

// CloseWrite shuts down the writing side: the client reads end of file.
func (c *Conn) CloseWrite() error { return c.shutdown(unix.SHUT_WR) }

func (c *Conn) shutdown(how int) error {
	return c.control("close", "shutdown", func(fd int) error { return unix.Shutdown(fd, how) })
}

// SetNoDelay turns Nagle's algorithm off or on. It is off from the start.
func (c *Conn) SetNoDelay(noDelay bool) error {
	return c.set(unix.IPPROTO_TCP, unix.TCP_NODELAY, number(noDelay))
}

// SetKeepAlive turns keep-alive probes on or off. They are on from the start.
func (c *Conn) SetKeepAlive(keepAlive bool) error {
	return c.set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, number(keepAlive))
}

// SetKeepAlivePeriod sets the idle time before the first probe, in whole seconds,
// rounded up. As in package net, zero means 15 s, and a negative value leaves what
// is set.
func (c *Conn) SetKeepAlivePeriod(d time.Duration) error {
	return c.setPositive(unix.TCP_KEEPIDLE, seconds(d))
}

// SetKeepAliveConfig sets all that concerns keep-alive probes. As in package net,
// zero means 15 s, 15 s and 9 probes, and a negative value leaves what is set.
func (c *Conn) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	err := c.SetKeepAlive(config.Enable)
	if err == nil {
		err = c.setPositive(unix.TCP_KEEPIDLE, seconds(config.Idle))
	}
	if err == nil {
		err = c.setPositive(unix.TCP_KEEPINTVL, seconds(config.Interval))
	}
	if err == nil {
		err = c.setPositive(unix.TCP_KEEPCNT, orDefault(config.Count, 9))
	}
	return err
}

// SetLinger says what Close does with unsent data: sec < 0 sends it in the
// background, 0 discards it and resets the connection, and more waits that long.
func (c *Conn) SetLinger(sec int) error {
	l := unix.Linger{}
	if sec >= 0 {
		l = unix.Linger{Onoff: 1, Linger: int32(sec)}
	}
	return c.control("set", "setsockopt", func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l)
	})
}

// SetReadBuffer sets the size of the kernel's receive buffer.
func (c *Conn) SetReadBuffer(bytes int) error { return c.set(unix.SOL_SOCKET, unix.SO_RCVBUF, bytes) }

// SetWriteBuffer sets the size of the kernel's send buffer.
func (c *Conn) SetWriteBuffer(bytes int) error { return c.set(unix.SOL_SOCKET, unix.SO_SNDBUF, bytes) }

// SyscallConn returns the raw connection.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	return rawConn{c.socket.Load().raw, c}, nil
}

// rawConn is a raw connection with the errors of package net.
type rawConn struct {
	raw  syscall.RawConn
	conn *Conn
}

func (r rawConn) Control(f func(uintptr)) error {
	return r.conn.wrap("raw-control", r.raw.Control(f))
}

func (r rawConn) Read(f func(uintptr) bool) error { return r.conn.wrap("raw-read", r.raw.Read(f)) }

func (r rawConn) Write(f func(uintptr) bool) error { return r.conn.wrap("raw-write", r.raw.Write(f)) }

// File returns a duplicate of the connection that the caller owns. Closing either
// does not affect the other.
func (c *Conn) File() (*os.File, error) {
	dup, err := sock.Duplicate(c.socket.Load())
	if err != nil {
		return nil, c.wrap("file", err)
	}
	return os.NewFile(uintptr(dup), "tcp"), nil
}

func (c *Conn) set(level, option, value int) error {
	return c.control("set", "setsockopt", func(fd int) error {
		return unix.SetsockoptInt(fd, level, option, value)
	})
}

// setPositive sets a TCP option, or leaves it when the value is negative.
func (c *Conn) setPositive(option, value int) error {
	if value < 0 {
		return nil
	}
	return c.set(unix.IPPROTO_TCP, option, value)
}

// control runs one system call on the descriptor.
func (c *Conn) control(op, call string, f func(fd int) error) error {
	return c.wrap(op, sock.Control(c.socket.Load(), func(fd int) error { return os.NewSyscallError(call, f(fd)) }))
}

// wrap turns an error of os.File into what package net reports.
func (c *Conn) wrap(op string, err error) error {
	if path, ok := err.(*fs.PathError); ok {
		err = path.Err
	}
	if errno, ok := err.(syscall.Errno); ok {
		return c.opError(op, os.NewSyscallError(op, errno))
	}
	if err != nil && err != io.EOF && err != os.ErrDeadlineExceeded && c.closed.Load() {
		err = net.ErrClosed // os.ErrClosed, or one that the poller does not export
	}
	return c.opError(op, err)
}

// opError says what failed, and on which connection.
func (c *Conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// seconds rounds up; zero means 15, negative stays so.
func seconds(d time.Duration) int {
	if d < 0 {
		return -1
	}
	return orDefault(int((d+time.Second-1)/time.Second), 15)
}
