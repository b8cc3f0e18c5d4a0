// Package listening tells whether a process takes connections from a listening socket: the
// sign of readiness of programs that cannot say it themselves. That they have bound, or even
// listen, proves nothing: a server with processes of its own does that before these have
// loaded the application.
//
// It looks from outside, in /proc, at a process and all its descendants (man 5 proc):
//
//   - an epoll instance that watches the socket (fdinfo);
//   - a thread inside accept, poll or select, or a variant of these, with the socket
//     among its arguments (syscall), which for the latter two are read from its memory;
//   - a connection to the listener's address among its descriptors: it has accepted that. A server
//     that works without a pause is never seen to wait, and a process that accepts is ready.
//
// That needs to be allowed to trace the processes (ptrace(2), "access mode checking"): those
// of the same user that have not changed users, and descendants under Yama; all with
// CAP_SYS_PTRACE.
//
// listening.go waits for that, parse.go reads the files, and calls_*.go have an architecture's numbers of system calls.
// The other files ask the same files something else: narrower.go whether a worker would listen on one address only, elsewhere.go
// on which addresses processes listen, sharing.go which ones wait on one listener, holder.go which one has a socket open.
package listening
