// Package sockdiag asks the kernel which TCP sockets of a port there are (man 7 sock_diag), those
// of all processes of this network namespace. It needs no privilege.
//
// It tells what nobody else does: a connection that no process has accepted yet has no inode; and
// a listener that is not ours shows by its own.
//
// One question costs a walk over the kernel's table of sockets, which takes from some ten
// microseconds to some milliseconds on a large machine. So it is nothing to ask for each
// connection.
package sockdiag
