package worker_test

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

// aWhile is long enough for an answer that must not come.
const aWhile = 50 * time.Millisecond

// TestPing: a worker that accepts answers a ping, and no other does. That pings are answered
// is said before ready.
func TestPing(t *testing.T) {
	for name, kernel := range map[string]bool{"handed off": false, "accepts": true} {
		t.Run(name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			t.Setenv("HANDFAST_PING", "1")
			var master *fdpass.Conn
			var ln *worker.Listener
			var listeners []*net.TCPListener
			ready := fdpass.TypeReady
			if kernel {
				master, ln, listeners = withListeners(t, 2)
				ready = fdpass.TypeListen
			} else {
				master, ln = mailbox(t, worker.Config{})
			}
			fdtest.Check(t, ln.Ready())
			says(t, master, fdpass.TypePong)
			says(t, master, ready)

			fdtest.Check(t, master.TrySend(fdpass.TypePing, nil))
			time.Sleep(aWhile)
			if typ := master.Next(); typ != 0 {
				t.Fatalf("nobody accepts, and the worker says %v", typ)
			}
			for i := range 4 {
				accepted := make(chan net.Conn, 1)
				go func() {
					if c, err := ln.Accept(); err == nil {
						accepted <- c
					}
				}()
				says(t, master, fdpass.TypePong)
				fdtest.Check(t, master.TrySend(fdpass.TypePing, nil)) // while it waits
				says(t, master, fdpass.TypePong)
				if kernel {
					dialTo(t, listeners[i%2])
				} else {
					closing(t, handOff(t, master, fdpass.TypeHandoff, 1)[0])
				}
				closing(t, fdtest.Receive(t, "accepted", accepted))
				if typ := master.Next(); typ != 0 {
					t.Errorf("for a connection the worker says %v", typ)
				}
				fdtest.Check(t, master.TrySend(fdpass.TypePing, nil))
			}
		})
	}
}

// TestNoPing: a master that does not ask for it is not told that pings are answered.
func TestNoPing(t *testing.T) {
	fdtest.NoLeaks(t)
	t.Setenv("HANDFAST_PING", "0")
	master, ln := mailbox(t, worker.Config{})
	fdtest.Check(t, ln.Ready())
	says(t, master, fdpass.TypeReady)
}

// TestPingLate: an answer for which there was no room comes when there is.
func TestPingLate(t *testing.T) {
	fdtest.NoLeaks(t)
	t.Setenv("HANDFAST_PING", "1")
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	closing(t, master)
	other, err := fdpass.NewConn(os.NewFile(uintptr(fdtest.Duplicate(t, file)), "another end"))
	fdtest.Check(t, err)
	closing(t, other)
	ln, err := worker.Config{Mailbox: file, ManualReady: true}.Listen()
	fdtest.Check(t, err)
	closing(t, ln)
	for err == nil {
		err = other.TrySend(fdpass.TypeReady, nil)
	}
	if !errors.Is(err, fdpass.ErrFull) {
		t.Fatal(err)
	}
	fdtest.Check(t, master.TrySend(fdpass.TypePing, nil))
	client := closing(t, handOff(t, master, fdpass.TypeHandoff, 1)[0])
	accept(t, ln) // has found the ping before, and no room
	for next(t, master).Type != fdpass.TypePong {
	}
	client.Close()
}

// TestPingAtFileLimit: a worker that cannot take connections for want of descriptors is there
// all the same, although a ping may lie behind them.
func TestPingAtFileLimit(t *testing.T) {
	if !inChild(t) {
		return
	}
	t.Setenv("HANDFAST_PING", "1")
	fdtest.Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: 1024}))
	master, ln := mailbox(t, worker.Config{})
	fdtest.Check(t, ln.Ready())
	says(t, master, fdpass.TypePong)
	says(t, master, fdpass.TypeReady)
	handOff(t, master, fdpass.TypeHandoff, 1)
	fdtest.Check(t, master.TrySend(fdpass.TypePing, nil))
	hogFiles(t)
	if _, err := ln.Accept(); !errors.Is(err, unix.EMFILE) {
		t.Errorf("Accept: %v; want EMFILE", err)
	}
	says(t, master, fdpass.TypePong)
}
