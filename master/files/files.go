// Package files knows how many descriptors the master may still open. What it
// accepts or takes back must leave some free: the worker that parked connections
// wait for cannot be started without.
package files

import "golang.org/x/sys/unix"

// Spare is how many descriptors are kept free for starting a worker: a socketpair,
// the pipes of fork and exec, a pidfd.
const Spare = 16

// Limit is the limit of open files (RLIMIT_NOFILE). The Go runtime has raised the
// soft limit to the hard one at its start.
func Limit() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<30))
}

// Ceiling is the lowest descriptor that says that no others are free but the spare
// ones: the kernel gives the lowest number that is free.
func Ceiling() int { return Limit() - Spare }

// Scarce tells whether a descriptor that is opened now would reach the ceiling.
func Scarce() bool {
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	unix.Close(fd)
	return fd >= Ceiling()
}
