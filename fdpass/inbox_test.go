package fdpass

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// pairOf returns both ends of a Pair.
func pairOf(t testing.TB) (ours, theirs *Conn) {
	t.Helper()
	ours, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = NewConn(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// TestInbox: an inbox is readable when a message comes, and not when one was taken. A poller that waits for EPOLLOUT
// on the socket is told of both: man 7 epoll, edge-triggered.
func TestInbox(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, theirs := pairOf(t)
	poller, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(poller)
	raw, err := ours.inbox.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET} // as package runtime does
		err = unix.EpollCtl(poller, unix.EPOLL_CTL_ADD, int(fd), &event)
	})
	if err != nil {
		t.Fatal(err)
	}
	wakes := func() int {
		n, err := unix.EpollWait(poller, make([]unix.EpollEvent, 1), 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	fd := sockets(t, 1)[0]
	for range 3 {
		send(t, ours, TypeHandoff, numbered(fd, 1, 1))
		wantPorts(t, theirs, 1, 1)
		if n := wakes(); n != 0 {
			t.Fatalf("the other side took a message: woken %d times", n)
		}
		send(t, theirs, TypeReturn, numbered(fd, 2, 1))
		if n := wakes(); n != 1 {
			t.Fatalf("the other side sent a message: woken %d times", n)
		}
		wantPorts(t, ours, 2, 2)
	}
}

// TestPairWaits: Receive on the master's end waits for a message, for the end of file, for its
// deadline, and until it is closed. Send does not wait.
func TestPairWaits(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, theirs := pairOf(t)
	result := make(chan error)
	receive := func() {
		var m Message
		err := ours.Receive(&m)
		CloseHandoffs(m.Handoffs)
		result <- err
	}
	go receive()
	send(t, theirs, TypeReady, nil)
	if err := <-result; err != nil {
		t.Errorf("a message: %v", err)
	}
	go receive()
	ours.SetReceiveDeadline(time.Unix(1, 0))
	if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: error %v, want os.ErrDeadlineExceeded", err)
	}
	ours.SetReceiveDeadline(time.Time{})
	fill(t, ours, sockets(t, 1)[0])
	if err := ours.Send(TypeReady, nil); err != ErrFull {
		t.Errorf("Send into a full mailbox: error %v, want ErrFull", err)
	}
	go receive()
	theirs.CloseWrite()
	if err := <-result; err != io.EOF {
		t.Errorf("end of file: error %v, want io.EOF", err)
	}

	ours, _ = pairOf(t)
	go receive()
	ours.Close()
	if err := <-result; err != ErrClosed {
		t.Errorf("closed: error %v, want ErrClosed", err)
	}
}
