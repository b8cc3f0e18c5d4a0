package fdtest

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

const loopback = "127.0.0.1:0"

// Listen opens a listener on loopback until the end of the test.
func Listen(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", loopback)
	Check(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// TCPPair makes a connection and returns both ends. They are closed at the end of the test, and what waits for
// them longer than three times Patience fails.
func TCPPair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", loopback)
	Check(t, err)
	defer ln.Close()
	return Dial(t, ln.(*net.TCPListener))
}

// Dial is TCPPair with a listener that it borrows.
func Dial(t testing.TB, ln *net.TCPListener) (client, server *net.TCPConn) {
	t.Helper()
	conn, err := net.Dial("tcp", ln.Addr().String())
	Check(t, err)
	t.Cleanup(func() { conn.Close() })
	ln.SetDeadline(time.Now().Add(Patience))
	server, err = ln.AcceptTCP()
	Check(t, err)
	t.Cleanup(func() { server.Close() })
	for _, end := range []net.Conn{conn, server} {
		Check(t, end.SetDeadline(time.Now().Add(3*Patience)))
	}
	return conn.(*net.TCPConn), server
}

// Connection is TCPPair with the server's end as a non-blocking descriptor, as a balancer has accepted it. The caller
// owns it.
func Connection(t testing.TB) (client *net.TCPConn, fd int) {
	t.Helper()
	client, server := TCPPair(t)
	defer server.Close()
	return client, Duplicate(t, server)
}

// Duplicate returns another descriptor of a socket or file, which the caller owns.
func Duplicate(t testing.TB, c syscall.Conn) (fd int) {
	t.Helper()
	fd, err := sock.Duplicate(c)
	Check(t, err)
	return fd
}

// Linger makes the last close of a TCP connection wait for 6,000 s: it has SO_LINGER (man 7 socket) and more data than
// its peer takes. It borrows fd.
func Linger(t testing.TB, fd int) {
	t.Helper()
	Check(t, unix.SetNonblock(fd, true))
	for data := make([]byte, 1<<20); ; {
		if _, err := unix.Write(fd, data); err == unix.EAGAIN {
			break
		} else if err != unix.EINTR {
			Check(t, err)
		}
	}
	Check(t, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 6000}))
}

// Lingering returns a connection whose last close would wait for 6,000 s (Linger). The caller owns it, and closes it
// only by what is tested, or after sock.StopLingering.
func Lingering(t testing.TB) (fd int) {
	t.Helper()
	_, fd = Connection(t)
	Linger(t, fd)
	return fd
}

// Inode tells sockets apart. It borrows fd, and fails the test if that is not open.
func Inode(t testing.TB, fd int) uint64 {
	t.Helper()
	inode, err := sock.InodeFD(fd)
	Check(t, err)
	return inode
}

// Control calls f with a descriptor as sock.Control does, and fails the test if f fails or is not called.
func Control(t testing.TB, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	Check(t, sock.Control(c, f))
}
