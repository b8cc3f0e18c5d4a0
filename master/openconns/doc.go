// Package openconns tells whether a worker has connections open, without asking the worker: what
// servers that know nothing of handfast can be asked about is nothing.
//
// Two lists are matched. The kernel says which connections with the balancer's port there are, by
// the inodes of their sockets (package sockdiag). /proc/PID/fd says which sockets the processes of
// the worker have open: those of its process group, and what descends from its first one. That
// must be allowed (man 2 ptrace, "access mode checking"): processes of the same user that have
// not changed users, and all with CAP_SYS_PTRACE.
//
// A look costs a walk over the kernel's table of sockets, which all workers that are looked at
// share for a moment, and a readlink for each descriptor up to the first connection. Await looks
// less and less often, and never spends more than a fiftieth of its time.
package openconns
