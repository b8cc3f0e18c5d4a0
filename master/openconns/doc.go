// Package openconns tells whether a worker has connections open, without asking the worker: a server
// that knows nothing of handfast would not answer.
//
// It matches two lists. The kernel says which connections with the balancer's port there are, by
// the inodes of their sockets (package sockdiag). /proc/PID/fd says which sockets the processes of
// the worker have open: those of its process group, and the descendants of its first one. The kernel
// allows that (man 2 ptrace, "access mode checking") for processes of the same user that have
// not changed users, and for all with CAP_SYS_PTRACE.
//
// A look costs a walk over the kernel's table of sockets, whose answer serves all workers
// for a moment, and a readlink for each descriptor up to the first connection. Await looks
// less and less often, and never spends more than a fiftieth of its time on it.
//
//	finder.go  Finder: the two lists, matched
//	family.go  the processes of a worker, and what their descriptors are
//	await.go   Await: when to look again
package openconns
