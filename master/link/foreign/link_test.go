package foreign

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/seccomp"
	"github.com/handfast/handfast/master/reexec"
)

// bare makes a link whose worker is never started, and its log.
func bare(t *testing.T) (*Link, *bytes.Buffer) {
	t.Helper()
	fdtest.NoLeaks(t)
	log := new(bytes.Buffer)
	l, err := Open(launch.BindSwap, launch.Drain{}, hclog.New(&hclog.LoggerOptions{Output: log}))
	fdtest.Check(t, err)
	t.Cleanup(func() {
		if !fdtest.IsClosed(l.Closed()) {
			l.Close()
		}
	})
	return l, log
}

// TestLeave: the first reason counts, and none after Close.
func TestLeave(t *testing.T) {
	l, _ := bare(t)
	first := errors.New("first")
	l.Leave(first)
	l.Leave(errors.New("second"))
	if !fdtest.IsClosed(l.Left()) || l.Err() != first {
		t.Errorf("left %v: %v", fdtest.IsClosed(l.Left()), l.Err())
	}
	l, _ = bare(t)
	l.Close()
	l.Leave(first)
	if fdtest.IsClosed(l.Left()) {
		t.Error("it leaves after Close")
	}
}

// TestCloseEndsHello: a child that says nothing does not hold Close up, and nothing runs afterwards.
func TestCloseEndsHello(t *testing.T) {
	l, _ := bare(t)
	result := make(chan error, 1)
	l.Go(func() { result <- l.Hello(func() { t.Error("it is waited for") }) })
	l.Close()
	if err := fdtest.Receive(t, "end of Hello", result); err == nil {
		t.Error("no error")
	}
}

// TestWarnOnce: a worker cannot fill the log.
func TestWarnOnce(t *testing.T) {
	l, log := bare(t)
	for range 3 {
		l.CannotSee(unix.EPERM)
		l.WarnOnce("another thing")
	}
	if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "CAP_SYS_PTRACE") {
		t.Errorf("%d lines: %s", n, log)
	}
}

// TestRoots: each process once, and no more than the limit.
func TestRoots(t *testing.T) {
	l, _ := bare(t)
	for range 2 {
		for tid := range 2 * maxRoots {
			l.AddRoot(tid)
		}
	}
	if roots := l.Roots(); len(roots) != maxRoots || roots[maxRoots-1] != maxRoots-1 {
		t.Errorf("%v", roots)
	}
}

// TestNoteOwnAddress: addresses of TCP and UDP sockets, each once, and no more than the limit.
func TestNoteOwnAddress(t *testing.T) {
	l, _ := bare(t)
	at := netip.MustParseAddrPort("127.0.0.1:80")
	for _, tt := range []struct {
		family, kind int
		network      string
	}{
		{unix.AF_INET, unix.SOCK_STREAM, "tcp"},
		{unix.AF_INET6, unix.SOCK_DGRAM, "udp"},
		{unix.AF_UNIX, unix.SOCK_STREAM, ""},
	} {
		fd, err := unix.Socket(tt.family, tt.kind|unix.SOCK_CLOEXEC, 0)
		fdtest.Check(t, err)
		caller := seccomp.Caller{TID: os.Getpid(), FD: fd}
		before := len(l.OwnAddresses())
		for range 2 {
			l.NoteOwnAddress(at, caller)
			l.NoteOwnAddress(netip.AddrPortFrom(at.Addr(), 0), caller)
		}
		var want []OwnAddress
		if tt.network != "" {
			want = append(want, OwnAddress{tt.network, at})
		}
		if got := l.OwnAddresses()[before:]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v", tt.network, got)
		}
		for port := range uint16(2 * maxOwn) {
			if tt.network == "udp" {
				l.NoteOwnAddress(netip.AddrPortFrom(at.Addr(), 1000+port), caller)
			}
		}
		unix.Close(fd)
	}
	if n := len(l.OwnAddresses()); n != maxOwn {
		t.Errorf("%d are remembered", n)
	}
}

// TestRestore: what SaveWorker notes, Restore has; and a link that was told to finish is not told again.
func TestRestore(t *testing.T) {
	fdtest.NoLeaks(t)
	for _, told := range []bool{false, true} {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK) // for the notifications
		fdtest.Check(t, err)
		b := reexec.NewBundle("this")
		before := Saved{Notifs: b.Keep(fd), PIDs: []int{5, 6}, Told: told}
		l, err := Restore(b, before, launch.Drain{}, nil)
		fdtest.Check(t, err)
		defer l.Close()
		if !fdtest.IsClosed(l.Ready()) || fdtest.IsClosed(l.Left()) {
			t.Error("it is not ready, or has left")
		}
		if after := l.SaveWorker(reexec.NewBundle("this")); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("%+v, want %+v", after, before)
		}
		if _, err := Restore(b, before, launch.Drain{}, nil); err == nil {
			t.Error("a descriptor is taken twice")
		}
	}
}
