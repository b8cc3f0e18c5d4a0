package sockdiag

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bound is the longest that a test waits for anything.
const bound = 20 * time.Second

// ways are those of asking, which must tell the same.
var ways = map[string]func(uint16, uint32) ([]Socket, error){"netlink": ask, "proc": readTables}

func mask(states ...State) (m uint32) {
	for _, s := range states {
		m |= 1 << s
	}
	return m
}

// TestUnaccepted: a connection that waits to be accepted has no inode; one that was accepted has.
func TestUnaccepted(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
		to := ln.Addr().(*net.TCPAddr).AddrPort().Addr()
		if to.IsUnspecified() {
			to = netip.MustParseAddr("127.0.0.1")
		}
		var clients []net.Conn
		for range 3 {
			conn, err := net.Dial("tcp", netip.AddrPortFrom(to, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			clients = append(clients, conn)
		}
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		clients[2].(*net.TCPConn).CloseWrite()
		for name, ask := range ways {
			var all []Socket
			for end := time.Now().Add(bound); ; time.Sleep(time.Millisecond) {
				if all, err = ask(port, mask(Established, CloseWait)); err != nil {
					t.Fatal(err)
				}
				half := slices.ContainsFunc(all, func(s Socket) bool { return s.State == CloseWait })
				if len(all) == 3 && half {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s, %s: %v, want 3 of which one is half-closed", address, name, all)
				}
			}
			for _, s := range all {
				i := slices.IndexFunc(clients, func(c net.Conn) bool { return c.LocalAddr().(*net.TCPAddr).AddrPort() == s.Remote })
				if i < 0 || s.Local != clients[i].RemoteAddr().(*net.TCPAddr).AddrPort() || s.Accepted() != (i == 0) {
					t.Errorf("%s, %s: %+v is client %d, of whom the first was accepted", address, name, s, i)
				}
			}
			listeners, err := ask(port, mask(Listening))
			if err != nil || len(listeners) != 1 || listeners[0].Queue != 2 || listeners[0].Inode == 0 || listeners[0].UID != uint32(os.Geteuid()) {
				t.Errorf("%s, %s: listeners %+v (%v), want one where 2 wait", address, name, listeners, err)
			}
		}
	}
}

// TestOnlyIPv6: a listener of IPv6 alone is told from one of both families.
func TestOnlyIPv6(t *testing.T) {
	for _, only := range []int{0, 1} {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only) })
			return err
		}}
		ln, err := config.Listen(context.Background(), "tcp", "[::]:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		all, err := List(ln.Addr().(*net.TCPAddr).AddrPort().Port(), Listening)
		if err != nil || len(all) != 1 || all[0].OnlyIPv6 != (only == 1) || all[0].Local.Addr() != netip.IPv6Unspecified() || all[0].Family != unix.AF_INET6 {
			t.Errorf("IPV6_V6ONLY %d: %+v (%v)", only, all, err)
		}
	}
}

// TestSeenBy: a process of our network namespace sees the same listeners, whichever way they are asked for.
func TestSeenBy(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		at := ln.Addr().(*net.TCPAddr).AddrPort()
		var read []Socket
		if err := walk("/proc/self/net", "tcp", mask(Listening), func(s Socket) { read = append(read, s) }); err != nil {
			t.Fatal(err)
		}
		if !sharesNetwork(os.Getpid()) {
			t.Error("we are not in our own network namespace")
		}
		for name, all := range map[string][]Socket{"proc": read, "seen": SeenBy(os.Getpid(), "tcp", Listening)} {
			i := slices.IndexFunc(all, func(s Socket) bool { return s.Local == at })
			if i < 0 || all[i].Inode == 0 || all[i].State != Listening || slices.ContainsFunc(all, func(s Socket) bool { return s.State != Listening }) {
				t.Errorf("%s, %s: %+v, want the listener among others", address, name, all)
			}
		}
	}
}

// TestNothing: of a port that nobody uses.
func TestNothing(t *testing.T) {
	if all, err := List(1, Established, Listening); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
}

// FuzzParse: no answer makes it read beyond, or for ever.
func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add(append([]byte{88, 0, 0, 0, 20, 0}, make([]byte, 82)...))
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		parse(b, func(Socket) { n++ })
		if n > len(b)/answerSize {
			t.Errorf("%d sockets in %d bytes", n, len(b))
		}
	})
}

// BenchmarkList is what one question costs.
func BenchmarkList(b *testing.B) {
	for b.Loop() {
		if _, err := List(1, Established, CloseWait); err != nil {
			b.Fatal(err)
		}
	}
}
