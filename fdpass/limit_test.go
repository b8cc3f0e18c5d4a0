package fdpass

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// A receiver at its limit of open files gets the bytes of a message, not (all of)
// its descriptors, MSG_CTRUNC, and no error (man 7 unix). The tests here run in
// processes of their own, which lower their limit.

// ownProcess names the variable that tells a test that it is in such a process.
const ownProcess = "FDPASS_TEST_PROCESS"

// alone runs the calling test again in a process of its own. It returns true there,
// and false here when that has ended.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownProcess) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), ownProcess+"=1", "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// limit lets this process have n open files, and c know it as if it were made now.
// That is done after sending: the limit is also that of what is in flight, together
// with what all other processes of this user have there.
func limit(t testing.TB, c *Conn, n uint64) {
	t.Helper()
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	if l.Cur = n; n > l.Max {
		t.Fatalf("the hard limit of open files is %d, this test needs %d", l.Max, n)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	c.in = newIncoming()
}

// crowd opens descriptors until only n more can be opened, and returns them.
func crowd(t testing.TB, fd, n int) []int {
	t.Helper()
	var dups []int
	for {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == unix.EMFILE {
			closeAll(dups[len(dups)-n:])
			return dups[:len(dups)-n]
		}
		if err != nil {
			t.Fatal(err)
		}
		dups = append(dups, dup)
	}
}

// TestNoFiles: a message for which there is no room stays in the mailbox, however
// often it is tried, and is received once when descriptors were closed.
func TestNoFiles(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, n := range []uint64{64, 1024} {
		fdtest.NoLeaks(t)
		ours, theirs := pair(t)
		fd := sockets(t, 1)[0]
		for i := range 3 {
			send(t, ours, TypeHandoff, numbered(fd, 20*i, 20))
		}
		ours.CloseWrite()
		limit(t, theirs, n)
		held := crowd(t, fd, 19)
		for i := range 3 {
			before := len(fdtest.OpenFiles())
			for range 3 {
				wantError(t, theirs, ErrNoFiles)
			}
			if after := len(fdtest.OpenFiles()); after != before {
				t.Errorf("%d descriptors are open, %d before", after, before)
			}
			unix.Close(held[i])
			wantPorts(t, theirs, 20*i, 20*i+19)
			held[i] = crowd(t, fd, 19)[0]
		}
		wantError(t, theirs, io.EOF)
		closeAll(held)
	}
}

// TestNoFilesInHoles: when connections end at a process that is at its limit, the
// next ones get their low numbers. That does not mean that there is room.
func TestNoFilesInHoles(t *testing.T) {
	if !alone(t) {
		return
	}
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	fd := sockets(t, 1)[0]
	send(t, ours, TypeHandoff, numbered(fd, 0, 1))
	send(t, ours, TypeHandoff, numbered(fd, 1, 1))
	send(t, ours, TypeHandoff, numbered(fd, 2, 20))
	limit(t, theirs, 1024)
	held := crowd(t, fd, 1)
	wantPorts(t, theirs, 0, 0) // gets the highest number
	unix.Close(held[0])
	wantPorts(t, theirs, 1, 1) // gets a low one
	wantError(t, theirs, ErrNoFiles)
	closeAll(held[1:])
	wantPorts(t, theirs, 2, 21)
}

// TestLost: what takes all descriptors between two messages is not noticed in time,
// once. Then it is.
func TestLost(t *testing.T) {
	if !alone(t) {
		return
	}
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	fd := sockets(t, 1)[0]
	for i, n := range []int{1, 20, 20, 20} {
		send(t, ours, TypeHandoff, numbered(fd, 20*i, n))
	}
	limit(t, theirs, 1024)
	wantPorts(t, theirs, 0, 0)
	held := crowd(t, fd, 0)
	var m Message
	if err := theirs.Receive(&m); err != nil || len(m.Handoffs) != 0 || m.Lost != 20 || m.Type != TypeHandoff {
		t.Errorf("received %+v, error %v; want 20 lost", m, err)
	}
	wantError(t, theirs, ErrNoFiles)
	closeAll(held)
	wantPorts(t, theirs, 40, 79)
}

// TestMalformedAtTheLimit: what is malformed is removed also when there is no room
// for its descriptors.
func TestMalformedAtTheLimit(t *testing.T) {
	if !alone(t) {
		return
	}
	fdtest.NoLeaks(t)
	raw, theirs := rawPair(t)
	defer unix.Close(raw)
	fd := sockets(t, 1)[0]
	sendRaw(t, raw, []byte("hello"), slices.Repeat([]int{fd}, 100))
	sendRaw(t, raw, appendMessage(nil, TypeHandoff, numbered(0, 7, 1), false), []int{fd})
	limit(t, theirs, 64)
	held := crowd(t, fd, 0)
	wantError(t, theirs, ErrMalformed)
	wantError(t, theirs, ErrNoFiles)
	closeAll(held)
	wantPorts(t, theirs, 7, 7)
}

// TestInFlight: without CAP_SYS_RESOURCE a user may have only as many descriptors in
// flight as a process may have open (ETOOMANYREFS, man 7 unix). That is a full
// mailbox, and there is room when one was received.
func TestInFlight(t *testing.T) {
	if !alone(t) {
		return
	}
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	fd := sockets(t, 1)[0]
	dropCapabilities(t)
	limit(t, theirs, 128)
	n, most := 0, (128+30)/30 // the message that goes beyond is the last
	for ours.TrySend(TypeHandoff, numbered(fd, 30*n, 30)) == nil {
		n++
	}
	if err := ours.TrySend(TypeHandoff, numbered(fd, 30*n, 30)); err != ErrInFlight || !errors.Is(err, ErrFull) || n > most {
		t.Errorf("%d batches of 30 are in flight, error %v; want at most %d, ErrInFlight", n, err, most)
	}
	wantPorts(t, theirs, 0, 30*n-1)
	fdtest.Eventually(t, "room", func() bool { return ours.TrySend(TypeHandoff, numbered(fd, 0, 30)) == nil }) // others may be in flight
	wantPorts(t, theirs, 0, 29)
}

// dropCapabilities drops those of this thread, which runs nothing but the test.
func dropCapabilities(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
}
