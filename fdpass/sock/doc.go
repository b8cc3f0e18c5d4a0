// Package sock has what package net keeps to itself about sockets and their descriptors: a call with a
// file's descriptor that leaves O_NONBLOCK as it is, duplicates, inodes, and the addresses of sockets
// as netip.AddrPort.
//
// It serves handfast's own packages and its workers. Raw descriptors are a user's last resort, so there is
// no promise that a later version has the same functions.
package sock
