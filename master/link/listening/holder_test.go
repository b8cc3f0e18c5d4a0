package listening

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
)

// TestFindHolder: another process that has a socket open is found, until it has not.
func TestFindHolder(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	inode, err := sock.Inode(file)
	if err != nil {
		t.Fatal(err)
	}
	self := []int{os.Getpid()}
	if h, err := FindHolder(self, []uint64{inode}); err != nil || h.Holds() {
		t.Errorf("nobody else has it: %+v, %v", h, err)
	}
	cmd := exec.Command("sh", "-c", "read line; exec 3<&-; echo closed; read line")
	cmd.ExtraFiles = []*os.File{file}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()
	h, err := FindHolder(self, []uint64{inode}) // it is a descendant
	if err != nil || !h.Holds() || h.pid != cmd.Process.Pid {
		t.Errorf("%+v, %v; want process %d", h, err, cmd.Process.Pid)
	}
	in.Write([]byte("\n"))
	out.Read(make([]byte, 100))
	if h.Holds() {
		t.Error("it has closed it")
	}
	if h, err := FindHolder(self, []uint64{inode}); err != nil || h.Holds() {
		t.Errorf("%+v, %v", h, err)
	}
}

// TestHoldersWithoutFiles: at the limit of open files there is no saying that nobody has a socket open.
func TestHoldersWithoutFiles(t *testing.T) {
	self := []int{os.Getpid()}
	fdtest.WithoutFiles(t, func() {
		if h, err := FindHolder(self, []uint64{1}); !errors.Is(err, unix.EMFILE) {
			t.Errorf("holder %+v, %v", h, err)
		}
		if held, err := Holding(self, []uint64{1}); !errors.Is(err, unix.EMFILE) {
			t.Errorf("held %v, %v", held, err)
		}
	})
	if _, err := Holding([]int{1 << 30}, []uint64{1}); err != nil {
		t.Errorf("of a process that has ended: %v", err)
	}
}
