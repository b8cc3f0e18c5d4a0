package fdtest

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// pretended is a test whose end comes when we say so.
type pretended struct {
	testing.TB
	cleanups []func()
	failed   string
}

func (p *pretended) Helper()                           {}
func (p *pretended) Cleanup(f func())                  { p.cleanups = append(p.cleanups, f) }
func (p *pretended) Errorf(format string, args ...any) { p.failed += fmt.Sprintf(format, args...) }

func (p *pretended) end() string {
	for len(p.cleanups) > 0 {
		last := len(p.cleanups) - 1
		f := p.cleanups[last]
		p.cleanups = p.cleanups[:last]
		f()
	}
	return p.failed
}

// TestNoLeaks: a test that leaves something open fails, and so does one that closes what is not its own.
func TestNoLeaks(t *testing.T) {
	const patience = 50 * time.Millisecond
	file := func() *os.File {
		f, err := os.Open(os.DevNull)
		Check(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}

	for name, test := range map[string]struct {
		during func(p *pretended) // between NoLeaks and the end of the test
		fails  string
	}{
		"nothing":                  {func(p *pretended) {}, ""},
		"a file closed in the end": {func(p *pretended) { f := file(); p.Cleanup(func() { f.Close() }) }, ""},
		"a file left open":         {func(p *pretended) { file() }, "left open: [\""},
		"a goroutine": {func(p *pretended) {
			ending := make(chan struct{})
			t.Cleanup(func() { close(ending) })
			go func() { <-ending }()
		}, "fdtest.TestNoLeaks"},
	} {
		p := &pretended{TB: t}
		noLeaks(p, patience)
		test.during(p)
		if got := p.end(); (got == "") != (test.fails == "") || !strings.Contains(got, test.fails) {
			t.Errorf("%s: %q, want %q", name, got, test.fails)
		}
	}

	others := file()
	p := &pretended{TB: t}
	noLeaks(p, patience)
	others.Close()
	if got := p.end(); !strings.Contains(got, `that are others': ["`) {
		t.Errorf("another's file closed: %q", got)
	}
}

// TestLingering: the last close waits, until lingering is switched off.
func TestLingering(t *testing.T) {
	NoLeaks(t)
	fd := Lingering(t)
	if linger, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER); err != nil || *linger != (unix.Linger{Onoff: 1, Linger: 6000}) {
		t.Errorf("SO_LINGER is %+v, %v", linger, err)
	}
	if unsent, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err != nil || unsent == 0 {
		t.Errorf("%d bytes wait to be sent, %v", unsent, err)
	}
	sock.StopLingering(fd)
	unix.Close(fd)
}

// TestConnection: the descriptor is the other end of the client.
func TestConnection(t *testing.T) {
	NoLeaks(t)
	client, fd := Connection(t)
	defer unix.Close(fd)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v, want O_NONBLOCK", flags, err)
	}
	if peer, err := sock.Peer(fd); err != nil || peer.String() != client.LocalAddr().String() {
		t.Errorf("peer %v, %v, want %v", peer, err, client.LocalAddr())
	}
}

// TestNoLeaksAfterGarbage: a file that an earlier test has left to the garbage collector is none of this test's.
func TestNoLeaksAfterGarbage(t *testing.T) {
	for range 20 {
		func() { os.Open(os.DevNull) }()
		p := &pretended{TB: t}
		noLeaks(p, 50*time.Millisecond)
		runtime.GC()
		if p.end() != "" {
			t.Fatal("the garbage of before counts")
		}
	}
}

// TestIsOlder: versions are numbers.
func TestIsOlder(t *testing.T) {
	for release, want := range map[string]bool{"5.10.0-32-cloud-amd64": true, "5.4.1": true, "5.19.0": false, "5.100": false, "6.1.0": false, "4.20": true, "": true} {
		if got := isOlder(release, 5, 19); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
	if IsLinuxOlder(3, 9) || !IsLinuxOlder(1000, 0) { // SO_REUSEPORT
		t.Error(Kernel())
	}
}
