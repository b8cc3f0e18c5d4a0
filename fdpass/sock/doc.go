// Package sock has what package net keeps to itself about sockets and their descriptors: a call with a
// file's descriptor that leaves O_NONBLOCK as it is, duplicates, inodes, and the addresses of sockets
// as netip.AddrPort.
//
// It serves handfast's own packages and its workers. Raw descriptors are a user's last resort, so there is
// no promise that a later version has the same functions.
//
//	control.go  calls with a descriptor: duplicates, inodes, lingering
//	accept.go   the number of accept(2); accept_none.go: where there is none
//	addr.go     addresses
package sock
