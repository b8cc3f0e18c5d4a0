package worker_test

import (
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

func TestSelf(t *testing.T) {
	if p, ok := worker.Self(); ok {
		t.Errorf("%+v without a master", p)
	}
	t.Setenv("HANDFAST_SLOT", "2")
	t.Setenv("HANDFAST_SLOTS", "4")
	if p, ok := worker.Self(); ok || p != (worker.Place{}) {
		t.Errorf("%+v without a generation", p)
	}
	t.Setenv("HANDFAST_GENERATION", "7")
	if p, ok := worker.Self(); !ok || p != (worker.Place{Slot: 2, Slots: 4, Generation: 7}) {
		t.Errorf("%+v, %v", p, ok)
	}
}

// setFD says that the mailbox has this number.
func setFD(t *testing.T, value string) { t.Setenv("HANDFAST_FD", value) }

// The mailbox that the environment names is used, once, and the processes that a
// worker starts inherit neither it nor the variable.
func TestInheritedMailbox(t *testing.T) {
	fdtest.NoLeaks(t)
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	closing(t, master)
	raw, err := file.SyscallConn()
	fdtest.Check(t, err)
	var fd int
	fdtest.Check(t, raw.Control(func(orig uintptr) { fd, err = unix.FcntlInt(orig, unix.F_DUPFD, 0) })) // inheritable
	fdtest.Check(t, err)
	fdtest.Check(t, file.Close())
	setFD(t, strconv.Itoa(fd))
	t.Setenv("HANDFAST_ADDRESS", "192.0.2.1:80")
	ln, err := worker.Listen("not used")
	fdtest.Check(t, err)
	closing(t, ln)
	if value, ok := os.LookupEnv("HANDFAST_FD"); ok {
		t.Errorf("HANDFAST_FD=%s is still set", value)
	}
	for fd, name := range fdtest.OpenFiles() {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 && strings.Contains(name, "socket") {
			t.Errorf("%d, %s, is inherited by child processes", fd, name)
		}
	}
	handOff(t, master, fdpass.TypeHandoff, 1)
	accept(t, ln)
	if got, ok := ln.Addr().(*net.TCPAddr); !ok || got.String() != "192.0.2.1:80" {
		t.Errorf("address %v, want the first of the master's", ln.Addr())
	}
	if _, err := worker.Listen(""); err == nil {
		t.Error("a second listener has the mailbox too")
	}
}

func TestBadMailbox(t *testing.T) {
	fdtest.NoLeaks(t)
	null, err := os.Open(os.DevNull)
	fdtest.Check(t, err)
	closing(t, null)
	server, _ := ordinary(t, anyPort)
	stream := fdtest.Duplicate(t, server)
	defer unix.Close(stream)
	for value, want := range map[string]string{
		"":                           `HANDFAST_FD="" is not a descriptor`,
		"three":                      `HANDFAST_FD="three" is not a descriptor`,
		"-1":                         `HANDFAST_FD="-1" is not a descriptor`,
		"99999":                      "HANDFAST_FD=99999 is not a handfast mailbox",
		strconv.Itoa(int(null.Fd())): "is not a handfast mailbox",
		strconv.Itoa(stream):         "is not a handfast mailbox",
	} {
		setFD(t, value)
		if _, err := worker.Listen(anyPort); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("HANDFAST_FD=%q: %v, want %s", value, err, want)
		}
		if _, ok := os.LookupEnv("HANDFAST_FD"); ok {
			t.Errorf("HANDFAST_FD=%q is still set", value)
		}
	}
	if _, err := unix.FcntlInt(uintptr(stream), unix.F_GETFD, 0); err != nil {
		t.Error("what is not a mailbox was closed: ", err)
	}
}
