// Package fdlimit knows how many descriptors the master may still open. What it
// accepts or takes back must leave some free: the worker that parked connections
// wait for cannot be started without.
package fdlimit

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// Reserve is how many descriptors are kept free for starting a worker: a socketpair,
// the pipes of fork and exec, a pidfd.
const Reserve = 16

// Limit is the limit of open files (RLIMIT_NOFILE). The Go runtime has raised the
// soft limit to the hard one at its start.
func Limit() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<30))
}

// Ceiling is the lowest descriptor that says that no others are free but the reserved
// ones: the kernel gives the lowest number that is free.
func Ceiling() int { return Limit() - Reserve }

// Scarce tells whether a descriptor that is opened now would reach the ceiling.
func Scarce() bool {
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	unix.Close(fd)
	return fd >= Ceiling()
}

// Close takes ownership of connections that workers have copies of and closes them, with lingering
// off (fdpass.CloseConnections), and sorts fds. What was accepted in one go mostly has consecutive
// numbers, and these take one system call.
func Close(fds []int) {
	slices.Sort(fds)
	for _, fd := range fds {
		sock.StopLingering(fd)
	}
	for len(fds) > 0 {
		n := 1
		for n < len(fds) && fds[n] == fds[0]+n {
			n++
		}
		closeRun(fds[0], n)
		fds = fds[n:]
	}
}

// closeRun closes n descriptors from first on. Raw system calls: they do not wait, and
// the straight line does not tell Go's scheduler (master, acceptor.accept).
func closeRun(first, n int) {
	if n > 1 {
		// man 2 close_range: Linux 5.9. Older kernels do not have it, and filters may forbid it.
		_, _, errno := unix.RawSyscall(unix.SYS_CLOSE_RANGE, uintptr(first), uintptr(first+n-1), 0)
		if errno == 0 {
			return
		}
	}
	for fd := first; fd < first+n; fd++ {
		unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	}
}
