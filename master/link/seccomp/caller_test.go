package seccomp

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestProtocolOfFiles: what is no socket is not asked for anything; whose server is gone would never answer.
func TestProtocolOfFiles(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for fd, want := range map[int]string{pipe[0]: "", int(file.Fd()): "TCP", 1 << 20: ""} {
		got, err := Caller{TID: os.Getpid(), FD: fd}.Protocol()
		if want == "TCP" && got == "MPTCP" { // Go's own listeners
			got = want
		}
		if got != want || err != nil {
			t.Errorf("descriptor %d: %q, %v, want %q", fd, got, err, want)
		}
	}
}

// TestProtocolWithoutFiles: at the limit of open files there is no saying that a socket is none.
func TestProtocolWithoutFiles(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	defer unix.Close(fd)
	fdtest.WithoutFiles(t, func() {
		if is, err := (Caller{TID: os.Getpid(), FD: fd}).IsTCP(unix.AF_INET); is || !errors.Is(err, unix.EMFILE) {
			t.Errorf("%v, %v", is, err)
		}
	})
}
