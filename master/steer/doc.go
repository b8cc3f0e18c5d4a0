// Package steer makes the kernel do what the master does elsewhere: give each client to
// its slot. Accepting then costs the master nothing, and a worker serves its slot's
// listener as any server serves its own.
//
// The way of a connection:
//
//  1. All listeners of an address, one for each slot, are a group of sockets that share a
//     port (SO_REUSEPORT, man 7 socket).
//  2. The first packet of a client's handshake arrives. The kernel runs the group's program
//     (SO_ATTACH_REUSEPORT_CBPF), which computes from the packet's source address what
//     package hash computes: the slot. It returns the place of the slot's socket in the
//     group. Nothing else of a connection is looked at: headers come too late.
//  3. That socket answers, and from then on the handshake and the connection are its own,
//     whatever program follows.
//  4. The connection waits in the socket's queue for whoever accepts from it: the slot's
//     worker, its successor, or both at once.
//
// A socket's place is the order of listen(2). If one leaves the group, because its last
// descriptor is closed or anybody calls shutdown(2) on it, the last one takes its place and
// clients go astray. So a Group holds all its listeners until it is closed, also those of
// workers that died and of slots that are not in use any more: connections that are in
// their queues are not lost, and wait for the next who accepts.
package steer
