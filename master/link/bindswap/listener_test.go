package bindswap

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/listening"
)

// bare makes a link without a worker: nothing runs, and nothing is to be closed.
func bare(t *testing.T, cfg Config) *Link {
	t.Helper()
	l, err := newLink(cfg)
	fdtest.Check(t, err)
	l.Link, err = foreign.Open("", cfg.Drain, nil)
	fdtest.Check(t, err)
	t.Cleanup(l.Link.Close)
	return l
}

func at(addr string, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))
}

// TestNewListener: it knows its address and family, and that of a mapped one; what is no TCP listener is refused.
func TestNewListener(t *testing.T) {
	for _, tt := range []struct {
		where, addr string
		onlyIPv6    bool
	}{
		{"127.0.0.1", "127.0.0.1", false},
		{"any", "::", false},
		{"::", "::", true},
	} {
		file, port := listen(t, tt.where, 0)
		ln, err := newListener(file)
		fdtest.Check(t, err)
		if ln.AddrPort != at(tt.addr, port) || ln.OnlyIPv6 != tt.onlyIPv6 || ln.inode != inode(t, file) {
			t.Errorf("%s: %+v", tt.where, ln)
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	defer unix.Close(pair[1])
	local := os.NewFile(uintptr(pair[0]), "local")
	if _, err := newListener(local); err == nil || !strings.Contains(err.Error(), "local is no TCP listener") {
		t.Errorf("a local socket: %v", err)
	}
	local.Close()
	if _, err := newListener(local); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed one: %v", err)
	}
}

// TestChoose: the listener with the same address, else the same family, else another one that takes the clients.
func TestChoose(t *testing.T) {
	four, port := listen(t, "127.0.0.1", 0)
	six, _ := listen(t, "::", port)
	l := bare(t, Config{Listeners: []*os.File{six, four}})
	for bound, want := range map[string]*os.File{
		"127.0.0.1": four,
		"0.0.0.0":   four,
		"127.0.0.2": nil,
		"::":        six,
		"::1":       six,
	} {
		ln := l.choose(foreign.Address{AddrPort: at(bound, port)})
		if ln == nil && want != nil || ln != nil && ln.file != want {
			t.Errorf("%s: %+v, want %v", bound, ln, want)
		}
	}
	if ln := l.choose(foreign.Address{AddrPort: at("127.0.0.1", port+1)}); ln != nil {
		t.Errorf("on another port: %v", ln)
	}
}

// TestAwaited: once a worker has one of the slot's listeners it is ready when it waits on all, but not on one in whose
// place another serves.
func TestAwaited(t *testing.T) {
	both, port := listen(t, "any", 0)
	four, _ := listen(t, "0.0.0.0", port)
	elsewhere, _ := listen(t, "127.0.0.1", 0)
	l := bare(t, Config{Listeners: []*os.File{both, four, elsewhere}})
	awaits := func(files ...*os.File) {
		t.Helper()
		var want, got []uint64
		for _, file := range files {
			want = append(want, inode(t, file))
		}
		for _, ln := range l.awaited() {
			got = append(got, ln.Inode)
		}
		if !slices.Equal(got, want) {
			t.Errorf("awaits %v, want %v", got, want)
		}
	}
	if l.Served() {
		t.Error("it has a listener")
	}
	awaits()
	l.markTaken(l.listeners[1], 7)
	awaits(four, elsewhere)
	l.markTaken(l.listeners[0], 8)
	awaits(both, four, elsewhere)
	if !l.Served() || !l.Accepts(at("0.0.0.0", port)) || l.Accepts(l.listeners[2].AddrPort) {
		t.Error("it has others than it took")
	}
	if !slices.Equal(l.Roots(), []int{7, 8}) {
		t.Errorf("processes %v", l.Roots())
	}
	if !l.isOurs(inode(t, elsewhere)) || l.isOurs(1) {
		t.Error("others are the slot's")
	}
}

// TestFitted: a server of IPv4 gets a listener of IPv4 alone if there can be one, else the one for both; a server
// for fewer clients than the listener's gets none, unless another one has that listener already.
func TestFitted(t *testing.T) {
	both, port := listen(t, "any", 0)
	four, _ := listen(t, "0.0.0.0", port)
	var fails error
	l := bare(t, Config{Listeners: []*os.File{both}, IPv4: func(of *os.File) (*os.File, error) {
		if of != both {
			t.Errorf("asked for %v", of)
		}
		return four, fails
	}})
	ln := l.listeners[0]
	if got, err := l.fitted(ln, at("::", port), unix.AF_INET6); got != ln || err != nil {
		t.Errorf("IPv6: %v, %v", got, err)
	}
	fails = errors.New("no")
	if got, err := l.fitted(ln, at("0.0.0.0", port), unix.AF_INET); got != ln || err != nil {
		t.Errorf("IPv4 where there can be no other: %v, %v", got, err)
	}
	fails = nil
	if got, err := l.fitted(ln, at("0.0.0.0", port), unix.AF_INET); err != nil || got.file != four || len(l.listeners) != 2 || !ln.replaced {
		t.Errorf("IPv4: %v, %v, %d listeners", got, err, len(l.listeners))
	}
	var narrower *listening.NarrowerError
	if got, err := l.fitted(ln, at("::1", port), unix.AF_INET6); got != nil || !errors.As(err, &narrower) {
		t.Errorf("for one address: %v, %v", got, err)
	}
	l.markTaken(ln, 7)
	if got, err := l.fitted(ln, at("::1", port), unix.AF_INET6); got != ln || err != nil {
		t.Errorf("for one address, when a server has it: %v, %v", got, err)
	}
}

// TestFollowTo: the balancer listens where a server does, or does not, or says why it cannot.
func TestFollowTo(t *testing.T) {
	file, port := listen(t, "127.0.0.1", 0)
	var fails error
	answer := file
	l := bare(t, Config{Follow: func(bound netip.AddrPort, onlyIPv6 bool) (*os.File, error) {
		if bound != at("127.0.0.1", port) || !onlyIPv6 {
			t.Errorf("asked for %v, IPv6 only %v", bound, onlyIPv6)
		}
		return answer, fails
	}})
	if ln, err := l.followTo(at("127.0.0.1", port), true); err != nil || ln.file != file || len(l.listeners) != 1 {
		t.Errorf("%+v, %v", ln, err)
	}
	answer = nil
	if ln, err := l.followTo(at("127.0.0.1", port), true); ln != nil || err != nil {
		t.Errorf("it does not: %+v, %v", ln, err)
	}
	for err, want := range map[error]unix.Errno{
		os.NewSyscallError("bind", unix.EACCES): unix.EACCES,
		errors.New("not here"):                  unix.EADDRNOTAVAIL,
	} {
		fails = err
		var cannot *followError
		if ln, got := l.followTo(at("127.0.0.1", port), true); ln != nil || !errors.As(got, &cannot) || cannot.errno() != want || cannot.Error() != err.Error() {
			t.Errorf("%v: %v, %v, want %v", err, ln, got, want)
		}
	}
}

// TestIsAt: where a server binds it is served by that address's listener, or one of both families.
func TestIsAt(t *testing.T) {
	for _, tt := range []struct {
		listener, bound string
		want            bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.0.0.1:80", "0.0.0.0:80", false},
		{"[::]:80", "0.0.0.0:80", true},
		{"[::]:80", "127.0.0.1:80", true},
		{"[::]:80", "[::1]:80", false},
		{"[::1]:80", "127.0.0.1:80", false},
	} {
		ln := &listener{Address: foreign.Address{AddrPort: netip.MustParseAddrPort(tt.listener)}}
		if got := ln.isAt(netip.MustParseAddrPort(tt.bound)); got != tt.want {
			t.Errorf("%s for %s: %v", tt.listener, tt.bound, got)
		}
	}
}
