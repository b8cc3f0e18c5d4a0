package fdpass

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// flagsOf returns the flags of a descriptor (FD_CLOEXEC) and of its file.
func flagsOf(t testing.TB, fd uintptr) (descriptor, file int) {
	t.Helper()
	descriptor, err := unix.FcntlInt(fd, unix.F_GETFD, 0)
	file, err2 := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return descriptor, file
}

// TestBatches: every size of batch arrives as it was sent, in order, as
// descriptors of the receiver's own that are closed on exec.
func TestBatches(t *testing.T) {
	for _, near := range []bool{false, true} {
		fdtest.NoLeaks(t)
		ours, theirs := pair(t)
		fds := sockets(t, MaxBatch)
		var m Message
		for n := 0; n <= MaxBatch; n++ {
			sent := handoffs(fds[:n]...)
			send(t, ours, TypeHandoff, sent)
			if theirs.in.near = near; near {
				careful(theirs)
			}
			if err := theirs.Receive(&m); err != nil || m.Type != TypeHandoff || m.Lost != 0 || len(m.Handoffs) != n {
				t.Fatalf("batch of %d: received %+v, error %v", n, m, err)
			}
			for i, h := range m.Handoffs {
				if h.Client != sent[i].Client || h.Flags != sent[i].Flags || fdtest.Inode(t, h.FD) != fdtest.Inode(t, fds[i]) || slices.Contains(fds, h.FD) {
					t.Errorf("batch of %d: number %d is %+v, want a copy of %+v", n, i, h, sent[i])
				}
				if descriptor, _ := flagsOf(t, uintptr(h.FD)); descriptor&unix.FD_CLOEXEC == 0 {
					t.Errorf("batch of %d: number %d is not closed on exec", n, i)
				}
			}
			CloseHandoffs(m.Handoffs)
		}
		err := ours.TrySend(TypeHandoff, numbered(fds[0], 0, MaxBatch+1))
		if err == nil || errors.Is(err, ErrFull) || errors.Is(err, ErrClosed) {
			t.Errorf("more than MaxBatch: error %v, want one of its own", err)
		}
		ours.Close()
		wantError(t, theirs, io.EOF) // and nothing was sent
	}
}

// TestPair: the worker's end is blocking (doc.go) and reaches no process but by
// os/exec; ours waits in the poller. A real connection works after its journey.
func TestPair(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	raw, _ := file.SyscallConn()
	raw.Control(func(fd uintptr) {
		if descriptor, flags := flagsOf(t, fd); descriptor&unix.FD_CLOEXEC == 0 || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("worker's end: descriptor flags %#x, file flags %#x; want close-on-exec and blocking", descriptor, flags)
		}
	})
	theirs, err := NewConn(file)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	client, fd := fdtest.Connection(t)
	err = ours.Send(TypeHandoff, handoffs(fd))
	unix.Close(fd)
	var m Message
	if err := errors.Join(err, theirs.Receive(&m)); err != nil || len(m.Handoffs) != 1 {
		t.Fatalf("received %+v, error %v", m, err)
	}
	conn := os.NewFile(uintptr(m.Handoffs[0].FD), "connection")
	fmt.Fprint(conn, "hello")
	conn.Close()
	if got, err := io.ReadAll(client); string(got) != "hello" {
		t.Errorf("client read %q, error %v", got, err)
	}
}

// TestMalformed: whatever comes, its descriptors are closed and the next message
// is received.
func TestMalformed(t *testing.T) {
	one := appendMessage(nil, TypeHandoff, clients[:1], false)
	two := appendMessage(nil, TypeHandoff, clients[:2], false)
	full := appendMessage(nil, TypeHandoff, numbered(0, 0, MaxBatch), false)
	sized := func(records, size int) []byte { // all right but for that
		b := edit(edit(appendMessage(nil, TypeHandoff, nil, false), 3, byte(records)), 5, byte(size))
		b[2] = byte(records >> 8)
		return append(b, make([]byte, records*size)...)
	}
	for _, v := range []struct {
		name string
		body []byte
		fds  int
	}{
		{"short", one[:headerSize-1], 1},
		{"one byte", one[:1], 0},
		{"nothing but a descriptor", nil, 1},
		{"version 0", edit(one, 0, 0), 1},
		{"version 2", edit(one, 0, 2), 1},
		{"a byte missing", one[:len(one)-1], 1},
		{"a byte too many", append(one[:len(one):len(one)], 0), 1},
		{"fewer records than said", edit(one, 3, 2), 1},
		{"65 records", sized(65, 24), 65},
		{"256 records", sized(256, 24), 250},
		{"records of 23 bytes", sized(1, 23), 1},
		{"records of 57 bytes", sized(1, 57), 1},
		{"records of 256 bytes and more", edit(one, 4, 1), 1},
		{"longer than any message", append(sized(64, 56), make([]byte, MaxDetails+1)...), 64},
		{"much longer", append(full[:len(full):len(full)], make([]byte, 60_000)...), 64},
		{"unknown address family", edit(one, headerSize+1, 5), 1},
		{"unknown address family in the last record", edit(two, headerSize+recordSize+1, 10), 2},
		{"record without descriptor", one, 0},
		{"more records", two, 1},
		{"more descriptors", one, 2},
		{"descriptor without record", appendMessage(nil, TypeReady, nil, false), 1},
		{"100 descriptors, 1 record", one, 100},
		{"100 descriptors, 64 records", full, 100},
		{"65 descriptors, 64 records", full, 65},
		{"253 descriptors", full, 253}, // SCM_MAX_FD
		{"ready with a record", edit(one, 1, byte(TypeReady)), 1},
		{"leave with a record", edit(one, 1, byte(TypeLeave)), 1},
	} {
		for _, near := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/near the limit %v", v.name, near), func(t *testing.T) {
				fdtest.NoLeaks(t)
				fd, conn := rawPair(t)
				t.Cleanup(func() { unix.Close(fd) })
				good := sockets(t, 1)[0]
				conn.in.near, conn.in.careful = near, near
				before := len(fdtest.OpenFiles())
				sendRaw(t, fd, v.body, slices.Repeat([]int{good}, v.fds))
				sendRaw(t, fd, one, []int{good})
				var m Message
				if err := conn.Receive(&m); !errors.Is(err, ErrMalformed) || len(m.Handoffs) != 0 || m.Type != 0 {
					t.Errorf("received %+v, error %v; want ErrMalformed", m, err)
				}
				if after := len(fdtest.OpenFiles()); after != before {
					t.Errorf("%d descriptors are open, %d before", after, before)
				}
				wantPorts(t, conn, 65535, 65535)
			})
		}
	}
}

func sendRaw(t testing.TB, fd int, body []byte, fds []int) {
	t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	// Not unix.Sendmsg: it adds a byte to descriptors that come without any.
	iov := unix.Iovec{Base: unsafe.SliceData(body)}
	iov.SetLen(len(body))
	msg := unix.Msghdr{Iov: &iov, Iovlen: 1, Control: unsafe.SliceData(oob)}
	msg.SetControllen(len(oob))
	if _, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL); errno != 0 {
		t.Fatal(errno)
	}
}

// TestLaterVersion: longer records, unknown flags and unknown types are no errors
// (doc.go); what to do with an unknown type is the caller's business.
func TestLaterVersion(t *testing.T) {
	fdtest.NoLeaks(t)
	fd, conn := rawPair(t)
	t.Cleanup(func() { unix.Close(fd) })
	fds := sockets(t, len(clients))
	for _, v := range []struct {
		typ  Type
		body []byte
	}{
		{TypeHandoff, later(clients...)},
		{77, edit(appendMessage(nil, TypeHandoff, clients, false), 1, 77)},
	} {
		sendRaw(t, fd, v.body, fds)
		var m Message
		if err := conn.Receive(&m); err != nil || m.Type != v.typ || len(m.Handoffs) != len(clients) {
			t.Fatalf("received %+v, error %v", m, err)
		}
		for i, h := range m.Handoffs {
			if h.Client != clients[i].Client || h.Flags != clients[i].Flags || fdtest.Inode(t, h.FD) != fdtest.Inode(t, fds[i]) {
				t.Errorf("record %d is %+v, want %+v", i, h, clients[i])
			}
		}
		CloseHandoffs(m.Handoffs)
	}
}

// fill queues messages of one connection, numbered from 0, until there is no room,
// and returns how many.
func fill(t testing.TB, c *Conn, fd int) int {
	t.Helper()
	for n := 0; ; n++ {
		switch err := c.TrySend(TypeHandoff, numbered(fd, n, 1)); {
		case errors.Is(err, ErrFull) && n > 0:
			return n
		case err != nil:
			t.Fatalf("message %d: %v", n, err)
		}
	}
}

// TestFull: a mailbox that nobody empties says so at once, and loses nothing. Send
// waits for room.
func TestFull(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	fd := sockets(t, 1)[0]
	n := fill(t, ours, fd)
	t.Logf("room for %d messages of one connection", n)
	fdtest.Inode(t, fd) // borrowed, also by the attempt that failed
	sent, waits := make(chan error, 1), make(chan struct{})
	write := ours.out.write
	ours.out.write = func(fd uintptr) bool {
		done := write(fd)
		if !done {
			close(waits)
			ours.out.write = write
		}
		return done
	}
	go func() { sent <- ours.Send(TypeHandoff, numbered(fd, n, 1)) }()
	select {
	case <-waits:
	case err := <-sent:
		t.Fatalf("Send: %v, want it to wait", err)
	}
	wantPorts(t, theirs, 0, n)
	if err := <-sent; err != nil {
		t.Errorf("Send: %v", err)
	}
}

// TestCloseWrite: what was sent before is received, then end of file, for ever
// (man 2 shutdown); the way back stays open.
func TestCloseWrite(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	fd := sockets(t, 1)[0]
	for i := range 3 {
		send(t, ours, TypeHandoff, numbered(fd, i, 1))
	}
	if err := ours.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := ours.TrySend(TypeHandoff, numbered(fd, 9, 1)); err != ErrClosed {
		t.Errorf("TrySend after CloseWrite: error %v, want ErrClosed", err)
	}
	wantPorts(t, theirs, 0, 2)
	wantError(t, theirs, io.EOF)
	wantError(t, theirs, io.EOF)
	send(t, theirs, TypeReturn, numbered(fd, 7, 1))
	wantPorts(t, ours, 7, 7)
}

// TestTakeBack: a process that holds a duplicate of the worker's end receives what the worker
// did not, also after that has closed its own.
func TestTakeBack(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	worker := duplicate(t, theirs)
	fd := sockets(t, 1)[0]
	for i := range 10 {
		send(t, ours, TypeHandoff, numbered(fd, 2*i, 2))
	}
	wantPorts(t, worker, 0, 5)
	worker.Close()
	ours.CloseWrite()
	wantPorts(t, theirs, 6, 19)
	wantError(t, theirs, io.EOF)
}

// TestReset: closing with unread messages resets the other end (ECONNRESET), which
// is still to receive what was sent before.
func TestReset(t *testing.T) {
	for _, near := range []bool{false, true} {
		fdtest.NoLeaks(t)
		ours, theirs := pair(t)
		theirs.in.near, theirs.in.careful = near, near
		fd := sockets(t, 1)[0]
		send(t, theirs, TypeReturn, numbered(fd, 0, 1))
		send(t, ours, TypeHandoff, numbered(fd, 0, 3))
		send(t, ours, TypeHandoff, numbered(fd, 3, 1))
		ours.Close()
		wantPorts(t, theirs, 0, 3)
		wantError(t, theirs, io.EOF)
		if err := theirs.TrySend(TypeReady, nil); err != ErrClosed {
			t.Errorf("TrySend to nobody: error %v, want ErrClosed", err)
		}
	}
}

// TestPeeked: between peeking and removing a message, somebody else who holds the
// same end may receive it, and the other side may close. Nothing is received
// twice or lost.
func TestPeeked(t *testing.T) {
	for _, v := range []struct {
		name    string
		between func(t *testing.T, ours, other *Conn)
		want    []int // what is received after 0 was peeked
	}{
		{"nothing happens", func(*testing.T, *Conn, *Conn) {}, []int{0, 1}},
		{"another takes it", func(t *testing.T, _, other *Conn) { wantPorts(t, other, 0, 0) }, []int{1}},
		{"another takes all", func(t *testing.T, _, other *Conn) { wantPorts(t, other, 0, 1) }, nil},
		{"reset", func(_ *testing.T, ours, _ *Conn) { ours.Close() }, []int{0, 1}},
	} {
		t.Run(v.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			ours, theirs := pair(t)
			other := duplicate(t, theirs)
			fd := sockets(t, 1)[0]
			send(t, ours, TypeHandoff, numbered(fd, 0, 1))
			send(t, ours, TypeHandoff, numbered(fd, 1, 1))
			send(t, theirs, TypeReturn, numbered(fd, 9, 1)) // unread: for the reset
			careful(theirs)
			read := theirs.in.read
			theirs.in.read = func(fd uintptr) bool { // peek, step aside, go on
				if !theirs.in.packet.recvmsg(fd, unix.MSG_PEEK) {
					return read(fd)
				}
				theirs.in.read = read
				v.between(t, ours, other)
				return theirs.in.remove(fd) || read(fd)
			}
			for _, n := range v.want {
				wantPorts(t, theirs, n, n)
			}
			ours.CloseWrite()
			wantError(t, theirs, io.EOF)
		})
	}
}

// TestClosed: closing our end wakes a goroutine that waits on it; sending to a closed end fails.
func TestClosed(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	result := make(chan error, 1)
	go func() { result <- theirs.Receive(new(Message)) }()
	ours.Close()
	if err := <-result; err != io.EOF {
		t.Errorf("Receive, other side closed: error %v, want io.EOF", err)
	}
	if err := theirs.TrySend(TypeReady, nil); err != ErrClosed {
		t.Errorf("TrySend, other side closed: error %v, want ErrClosed", err)
	}
	for name, err := range map[string]error{
		"Receive":    ours.Receive(new(Message)),
		"TrySend":    ours.TrySend(TypeReady, nil),
		"Send":       ours.Send(TypeReady, nil),
		"CloseWrite": ours.CloseWrite(),
	} {
		if err != ErrClosed {
			t.Errorf("%s after Close: error %v, want ErrClosed", name, err)
		}
	}
	ours, _ = pair(t)
	fill(t, ours, sockets(t, 1)[0])
	go func() { result <- ours.Receive(new(Message)) }()
	go func() { result <- ours.Send(TypeReady, nil) }()
	ours.Close()
	for range 2 {
		if err := <-result; err != ErrClosed {
			t.Errorf("Receive and Send when closed: error %v, want ErrClosed", err)
		}
	}
}

// TestReceiveDeadline: as in package net, a deadline ends waiting, and may be
// moved.
func TestReceiveDeadline(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	result := make(chan error, 1)
	go func() { result <- theirs.Receive(new(Message)) }()
	theirs.SetReceiveDeadline(time.Unix(1, 0))
	if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want os.ErrDeadlineExceeded", err)
	}
	send(t, ours, TypeHandoff, numbered(sockets(t, 1)[0], 5, 1))
	if err := theirs.Receive(new(Message)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want os.ErrDeadlineExceeded", err)
	}
	wantPorts(t, theirs, 5, 5) // sets another one
}

// TestSocketOptions: a worker can ask the kernel to add to each message who sent
// it (man 7 unix), on the end that it shares with the master. That leaves room for
// all descriptors, and those that the master did not ask for are closed.
func TestSocketOptions(t *testing.T) {
	for name, option := range map[string]int{"credentials": unix.SO_PASSCRED, "pidfd": unix.SO_PASSPIDFD, "security label": unix.SO_PASSSEC} {
		for _, near := range []bool{false, true} {
			fdtest.NoLeaks(t)
			ours, theirs := pair(t)
			theirs.in.near, theirs.in.careful = near, near
			var err error
			theirs.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1) })
			if err != nil {
				t.Logf("%s: %v", name, err) // SO_PASSPIDFD: since Linux 6.5
				continue
			}
			send(t, ours, TypeHandoff, numbered(sockets(t, 1)[0], 1, MaxBatch))
			ours.Close()
			wantPorts(t, theirs, 1, MaxBatch)
			wantError(t, theirs, io.EOF)
		}
	}
}

// TestSendAllocates nothing: it is on the straight line.
func TestSendAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	fdtest.NoLeaks(t)
	ours, theirs := pair(t)
	fd := sockets(t, 1)[0]
	buffer := make([]byte, 4096)
	discard := func(fd uintptr) bool { // read(2) leaves the descriptors behind
		n, _ := unix.Read(int(fd), buffer)
		return n > 0
	}
	for _, n := range []int{0, 1, MaxBatch} {
		hs := handoffs(slices.Repeat([]int{fd}, n)...)
		got := testing.AllocsPerRun(100, func() {
			send(t, ours, TypeHandoff, hs)
			theirs.raw.Read(discard)
		})
		if got != 0 {
			t.Errorf("batch of %d: %v allocations, want 0", n, got)
		}
	}
}
