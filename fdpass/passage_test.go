package fdpass

import (
	"encoding/hex"
	"io"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// passage returns both ends of one, and the entrance's descriptor, which belongs to that.
func passage(t *testing.T) (entrance, exit *Conn, fd int) {
	t.Helper()
	in, out, err := NewPassage()
	fdtest.Check(t, err)
	entrance, err = NewEntrance(in)
	fdtest.Check(t, err)
	exit, err = NewExit(out)
	fdtest.Check(t, err)
	t.Cleanup(func() { entrance.Close(); exit.Close() })
	return entrance, exit, in
}

// TestPassageEnd: the bytes that doc.go promises, and whose end it is.
func TestPassageEnd(t *testing.T) {
	sent := PassageEnd(63, 5)
	const want = "010b000100180000" + "0004003f" + "0000000000000000000000000000000000000000"
	if got := hex.EncodeToString(appendMessage(nil, TypePass, []Handoff{sent}, false)); got != want {
		t.Errorf("an end is\n%s, want\n%s", got, want)
	}
	_, hs, err := parseAll(appendMessage(nil, TypePass, []Handoff{sent}, false))
	if err != nil || hs[0].PassageSlot() != 63 {
		t.Errorf("%+v, %v", hs, err)
	}
}

// TestPassage: connections come with their details, what is no message is an error among others, and nobody waits for what is closed.
func TestPassage(t *testing.T) {
	fdtest.NoLeaks(t)
	entrance, exit, fd := passage(t)
	sent := detailed(sockets(t, 3)...)
	last := fdtest.Lingering(t)
	sendRaw(t, fd, []byte("hello"), []int{last})
	unix.Close(last)
	fdtest.Check(t, entrance.TrySend(TypePass, sent))
	soon(t, "Receive", func() { wantError(t, exit, ErrMalformed) })
	var m Message
	if err := exit.Receive(&m); err != nil || m.Type != TypePass || len(m.Handoffs) != 3 || m.Handoffs[2].Details != sent[2].Details {
		t.Errorf("received %+v, error %v", m, err)
	}
	soon(t, "Discard", func() { exit.Discard(m.Handoffs) })
	fdtest.Check(t, entrance.TrySend(TypePass, sent))
	fdtest.Check(t, unix.Shutdown(fd, unix.SHUT_WR))
	if err := entrance.TrySend(TypePass, sent); err != ErrClosed {
		t.Errorf("behind its end: %v", err)
	}
	fdtest.Check(t, exit.Receive(&m))
	exit.Discard(m.Handoffs)
	if !exit.in.raw || !exit.in.spare.raw {
		t.Error("receiving wakes the runtime's monitor thread")
	}
	wantError(t, exit, io.EOF)
}

// TestEndReceiving: under the lock that a ReceiveLocked takes, nothing leaves the socket from then on.
func TestEndReceiving(t *testing.T) {
	fdtest.NoLeaks(t)
	entrance, exit, _ := passage(t)
	fdtest.Check(t, entrance.TrySend(TypePass, handoffs(sockets(t, 1)...)))
	l := locking{about: make(chan struct{}, 10)}
	received := make(chan error)
	l.mu.Lock()
	go func() {
		var m Message
		err := exit.ReceiveLocked(&m, &l)
		l.Unlock()
		CloseHandoffs(m.Handoffs)
		received <- err
	}()
	fdtest.Receive(t, "the lock", l.about)
	exit.EndReceiving()
	l.mu.Unlock()
	if err := fdtest.Receive(t, "end", received); err == nil {
		t.Error("a message was received behind the end")
	}
	var m Message
	if err := exit.Receive(&m); err == nil {
		t.Errorf("received %+v", m)
	}
}

// locking says that somebody is about to lock it.
type locking struct {
	mu    sync.Mutex
	about chan struct{}
}

func (l *locking) Lock() {
	l.about <- struct{}{}
	l.mu.Lock()
}

func (l *locking) Unlock() { l.mu.Unlock() }

// TestPassageWhole: of what does not fit KeepWhole has the kernel close nothing: it stays until there is room.
func TestPassageWhole(t *testing.T) {
	if !alone(t) {
		return
	}
	in, out, err := NewPassage()
	fdtest.Check(t, err)
	exit, err := NewConn(os.NewFile(uintptr(out), "exit"))
	fdtest.Check(t, err)
	defer exit.Close()
	defer unix.Close(in)
	sendRaw(t, in, []byte("hello"), slices.Repeat([]int{in}, maxRights))
	limit(t, exit, 600)
	exit.Distrust()
	exit.KeepWhole()
	crowded := crowd(t, in, 20)
	for range 3 {
		wantError(t, exit, ErrNoFiles)
	}
	fdtest.Eventually(t, "that copies are closed", func() bool { return !exit.Full() })
	closeAll(crowded)
	wantError(t, exit, ErrMalformed)
}
