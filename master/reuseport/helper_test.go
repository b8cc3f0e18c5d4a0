package reuseport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/hash"
)

// bound is the longest that a test waits for anything.
const bound = fdtest.Patience

// roleVariable makes the test binary play another program.
const roleVariable = "REUSEPORT_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "worker":
		os.Exit(worker())
	case "network": // a network namespace: the rest of the test, in there
		if err := setUpNetwork(); err != nil {
			fmt.Println("network:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
}

// worker has a listener as descriptor 3. It does what its standard input says, a line each,
// and says "done".
//
//	accept  from now on, answer each connection with the pid
//	close   close the listener
//	shut    shut the listener down
func worker() int {
	file := os.NewFile(3, "listener")
	ln, err := net.FileListener(file)
	file.Close()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("done")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); fmt.Println("done") {
		switch lines.Text() {
		case "accept":
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					fmt.Fprintln(conn, os.Getpid())
					conn.Close()
				}
			}()
		case "close":
			ln.Close()
		case "shut":
			raw, _ := ln.(*net.TCPListener).SyscallConn()
			raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		}
	}
	return 0
}

// process is a worker that was started.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startWorker(t *testing.T, listener *os.File) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0], "worker of "+t.Name())}
	p.cmd.Env = append(os.Environ(), roleVariable+"=worker", "GORACE=atexit_sleep_ms=0")
	p.cmd.ExtraFiles = []*os.File{listener}
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	p.expectDone()
	return p
}

func (p *process) do(command string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		p.t.Fatal(err)
	}
	p.expectDone()
}

func (p *process) expectDone() {
	p.t.Helper()
	stuck := time.AfterFunc(bound, func() { p.cmd.Process.Kill() })
	defer stuck.Stop()
	if !p.out.Scan() || p.out.Text() != "done" {
		p.t.Fatalf("worker said %q (%v)", p.out.Text(), p.out.Err())
	}
}

// kill ends the worker by SIGKILL and waits for it.
func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
}

// programsAtTest are those that groups of mustListen are given (TestCounting).
var programsAtTest *Programs

func mustListen(t *testing.T, address string, config hash.Config, slots int) *Group {
	t.Helper()
	g, err := ListenWith(t.Context(), address, config, slots, Options{Programs: programsAtTest})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// resize has so many slots' clients come to the members of the same numbers.
func resize(g *Group, slots int) error {
	if err := g.Grow(slots); err != nil {
		return err
	}
	return g.Steer(inOrder(slots))
}

// arrived is a connection that a slot's listener accepted.
type arrived struct {
	slot   int
	client netip.AddrPort
}

// acceptAll accepts from the slots' listeners, writes each client the slot and closes, until the
// test ends. What came is told to each.
func acceptAll(t *testing.T, g *Group, from, to int, each func(arrived)) {
	t.Helper()
	for slot := from; slot < to; slot++ {
		ln, err := net.FileListener(g.Listener(slot))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		t.Cleanup(func() { ln.Close(); <-ended })
		go func() {
			defer close(ended)
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				if each != nil {
					client := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
					each(arrived{slot, netip.AddrPortFrom(client.Addr().Unmap(), client.Port())})
				}
				fmt.Fprintf(conn, "%d\n", slot)
				conn.Close()
			}
		}()
	}
}

// dial connects from the given address, which need not be configured anywhere.
func dial(ctx context.Context, from netip.Addr, to string) (*net.TCPConn, error) {
	dialer := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
		Timeout:   bound,
		Control: func(_, _ string, raw syscall.RawConn) error {
			return sock.ControlRaw(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1) })
		},
	}
	conn, err := dialer.DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(bound))
	return conn.(*net.TCPConn), nil
}

// slotOf connects and returns the slot that answers.
func slotOf(ctx context.Context, from netip.Addr, to string) (slot int, err error) {
	conn, err := dial(ctx, from, to)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_, err = fmt.Fscanln(conn, &slot)
	return slot, err
}

// loopback returns addresses of 127.0.0.0/8, one for each number.
func loopback(n int) netip.Addr {
	n = 1 + (n*0x9e3779)&0xffffff%0xfffffe
	return netip.AddrFrom4([4]byte{127, byte(n >> 16), byte(n >> 8), byte(n)})
}

// inNetwork runs the calling test once more, in a network namespace where all IPv4 and IPv6
// addresses are this host's. It reports whether this is that run.
func inNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(roleVariable) == "network" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), roleVariable+"=network", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
		const why = "no network namespace, as root or as another user: %v"
		if os.Getenv("CI") != "" {
			t.Fatalf(why, err)
		}
		t.Skipf(why, err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a network namespace: %v\n%s", err, out)
	} else {
		t.Logf("in a network namespace:\n%s", out)
	}
	return false
}

// setUpNetwork makes this host have all addresses.
func setUpNetwork() error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return addLocalRoute("2000::/3", 1)
}

// addLocalRoute is ip -6 route add local PREFIX dev INTERFACE (man 7 rtnetlink).
func addLocalRoute(prefix string, interfaceIndex uint32) error {
	dst := netip.MustParsePrefix(prefix)
	request := struct {
		unix.NlMsghdr
		unix.RtMsg
		dstHeader unix.RtAttr
		dst       [16]byte
		oifHeader unix.RtAttr
		oif       uint32
	}{
		NlMsghdr: unix.NlMsghdr{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_REQUEST | unix.NLM_F_CREATE | unix.NLM_F_ACK},
		RtMsg: unix.RtMsg{
			Family: unix.AF_INET6, Dst_len: uint8(dst.Bits()),
			Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Protocol: unix.RTPROT_STATIC, Scope: unix.RT_SCOPE_HOST,
		},
		dstHeader: unix.RtAttr{Len: unix.SizeofRtAttr + 16, Type: unix.RTA_DST},
		dst:       dst.Addr().As16(),
		oifHeader: unix.RtAttr{Len: unix.SizeofRtAttr + 4, Type: unix.RTA_OIF},
		oif:       interfaceIndex,
	}
	request.Len = uint32(unsafe.Sizeof(request))
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	message := unsafe.Slice((*byte)(unsafe.Pointer(&request)), unsafe.Sizeof(request))
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("recvfrom: %d bytes, %w", n, err)
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 { // struct nlmsgerr
		return fmt.Errorf("add a route to %s: %w", prefix, syscall.Errno(-code))
	}
	return nil
}
