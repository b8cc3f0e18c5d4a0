package fdlimit

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestClose: what is given, in whatever order, and nothing that lies between.
func TestClose(t *testing.T) {
	var fds []int
	for range 10 {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	kept := []int{fds[0], fds[3], fds[7]}
	given := []int{fds[9], fds[1], fds[2], fds[8], fds[4], fds[6], fds[5]}
	Close(slices.Clone(given))
	Close(nil)
	for _, fd := range fds {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if open := err == nil; open != slices.Contains(kept, fd) {
			t.Errorf("descriptor %d is open: %v; given were %v", fd, open, given)
		}
	}
	Close(kept)
}

// TestCloseAllocatesNothing: on the straight line.
func TestCloseAllocatesNothing(t *testing.T) {
	fds := []int{1 << 30, 1<<30 - 2} // nobody's
	if n := testing.AllocsPerRun(100, func() { Close(fds) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
