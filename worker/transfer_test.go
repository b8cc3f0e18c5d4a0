package worker_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestTransferNeverWaits: the flag O_NONBLOCK is the socket's own, so others can switch it off, and a raw system call that waited would
// stop the whole process.
func TestTransferNeverWaits(t *testing.T) {
	fdtest.NoLeaks(t)
	conn, client := handedOff(t)
	fdtest.Control(t, conn, func(fd int) error { return unix.SetNonblock(fd, false) })
	ended := make(chan error, 2)
	fdtest.Check(t, conn.SetDeadline(time.Now().Add(10*time.Millisecond)))
	go func() {
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}()
	go func() {
		var err error
		for piece := make([]byte, 8<<10); err == nil; { // which nobody reads
			_, err = conn.Write(piece)
		}
		ended <- err
	}()
	for range 2 {
		if err := fdtest.Receive(t, "end of a transfer", ended); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("past the deadline: %v", err)
		}
	}
	fdtest.Check(t, client.Close())
}

// TestTransferInPieces: a write for which there is not room at once goes on where it was.
func TestTransferInPieces(t *testing.T) {
	fdtest.NoLeaks(t)
	conn, client := handedOff(t)
	fdtest.Check(t, conn.SetWriteBuffer(1)) // the least that there is
	want := pattern(64 << 10)
	for range 4 {
		written := make(chan error, 1)
		go func() {
			n, err := conn.Write(want)
			if err == nil && n != len(want) {
				err = io.ErrShortWrite
			}
			written <- err
		}()
		got := make([]byte, len(want))
		_, err := io.ReadFull(client, got)
		fdtest.Check(t, err)
		if !bytes.Equal(got, want) {
			t.Fatal("something else has arrived than was written")
		}
		fdtest.Check(t, fdtest.Receive(t, "end of a write", written))
	}
}

// TestTransferAllocatesNothing: what a transfer needs, three allocations, is used again, but for a quarter of all times with the race
// detector (sync.Pool).
func TestTransferAllocatesNothing(t *testing.T) {
	conn, client := handedOff(t)
	b, back := make([]byte, 512), make([]byte, 512)
	if n := testing.AllocsPerRun(100, func() {
		client.Write(b)
		if n, err := conn.Read(b); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
		conn.Write(b)
		io.ReadFull(client, back)
	}); n > 3 {
		t.Errorf("%v allocations", n)
	}
}
