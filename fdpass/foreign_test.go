package fdpass

import (
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// soon fails the test if f takes longer than what waits for nobody. The others in this process may
// have the processor meanwhile.
func soon(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(timeout):
		t.Fatalf("%s waits", what)
	}
}

// TestForeignCloses: closing what a worker has made linger does not wait.
//
// Row A5: the last close of such a socket was the master's, and held all locks for 6,000 s.
func TestForeignCloses(t *testing.T) {
	fdtest.NoLeaks(t)
	soon(t, "CloseConnections", func() { CloseConnections(fdtest.Lingering(t)) })
	soon(t, "CloseHandoffs", func() { CloseHandoffs([]Handoff{{FD: fdtest.Lingering(t)}}) })
	soon(t, "Discard", func() { new(Bin).Discard(fdtest.Lingering(t)) })
}

// TestForeignMessages: a master closes none of the descriptors of a malformed message while somebody
// waits, however many there are, nor does the kernel in recvmsg: alone, or in a socket's queue.
//
// Row A5.
func TestForeignMessages(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) []int{
		"one": func(t *testing.T) []int { return []int{fdtest.Lingering(t)} },
		"the last of 253": func(t *testing.T) []int {
			return append(slices.Repeat([]int{sockets(t, 1)[0]}, maxRights-1), fdtest.Lingering(t))
		},
		"in a socket's queue": func(t *testing.T) []int {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			inner := fdtest.Lingering(t)
			sendRaw(t, fds[0], []byte("x"), []int{inner})
			unix.Close(inner)
			unix.Close(fds[0])
			return fds[1:]
		},
	} {
		t.Run(name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			ours, theirs, err := Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			defer theirs.Close()
			fds := make(t)
			sendRaw(t, int(theirs.Fd()), []byte("hello"), fds)
			unix.Close(fds[len(fds)-1]) // from now on the last copy is the master's
			soon(t, "Receive", func() {
				var m Message
				if err := ours.Receive(&m); !errors.Is(err, ErrMalformed) {
					t.Errorf("error %v, want ErrMalformed", err)
				}
			})
		})
	}
}

// TestForeignAtTheLimit: a master that has no descriptors for all of a message leaves it where it is,
// whatever it is. The kernel would close the others.
//
// Row A5.
func TestForeignAtTheLimit(t *testing.T) {
	if !alone(t) {
		return
	}
	fdtest.NoLeaks(t)
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	last := fdtest.Lingering(t)
	fd := sockets(t, 1)[0]
	sendRaw(t, int(theirs.Fd()), []byte("hello"), []int{fd, fd, last})
	unix.Close(last)
	limit(t, ours, 64)
	ours.Distrust()
	ours.in.takeWhole()
	ours.in.flags = unix.MSG_DONTWAIT
	held := crowd(t, fd, 2)
	for range 3 {
		soon(t, "Receive", func() { wantError(t, ours, ErrNoFiles) })
	}
	closeAll(held)
	soon(t, "Receive", func() { wantError(t, ours, ErrMalformed) })
}

// TestBinFull: what one sender sends is bounded, and a full bin becomes empty.
func TestBinFull(t *testing.T) {
	fdtest.NoLeaks(t)
	fd := sockets(t, 1)[0]
	b := Bin{closing: true} // but nothing is closed
	for n := 0; n <= maxDiscarded; n++ {
		if b.Full() {
			t.Fatalf("full with %d", n)
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		b.Discard(dup)
	}
	if !b.Full() {
		t.Error("not full")
	}
	b.empty()
	if b.Full() || b.closing {
		t.Error("not empty")
	}
}
