// Package sockdiag asks the kernel which TCP sockets of a port there are (man 7 sock_diag), those
// of all processes of this network namespace. It needs no privilege.
//
// The answer shows two things that nothing else shows: connections that no process has accepted yet, which have no
// inode; and listeners that are not ours.
//
// A question costs a walk over the kernel's table of sockets, which takes from some ten
// microseconds to some milliseconds on a large machine. So do not ask for each connection.
//
// Where the kernel does not answer, and for another process's network namespace, proc.go reads /proc/net.
package sockdiag
