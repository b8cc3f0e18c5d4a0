// Package reuseport makes the kernel do what the master does elsewhere: give each client to
// its slot. Accepting then costs the master nothing, and a worker serves its slot's
// listener as any server serves its own.
//
// The way of a connection:
//
//  1. All listeners of an address, the members of a Group, are a group of sockets that share a
//     port (SO_REUSEPORT, man 7 socket). There is one for each worker that lives.
//  2. The first packet of a client's handshake arrives. The kernel runs the group's program
//     (SO_ATTACH_REUSEPORT_CBPF), which computes from the packet's source address what
//     package hash computes: the slot. If slots have addresses of their own, the destination decides first. It
//     returns the place, in the group, of the member that the slot's clients come to (Steer). Nothing else of a
//     connection is looked at: headers come too late.
//  3. That socket answers, and from then on the handshake and the connection are its own,
//     whatever program follows.
//  4. The connection waits in the socket's queue until somebody accepts it: the slot's worker, its successor, or
//     the master.
//
// A reload is a Steer: from one packet to the next a slot's clients come to the new worker's member. The old worker's
// member gets only connections whose handshake was under way.
//
// A socket's place is the order of listen(2). If one leaves the group, because its last
// descriptor is closed or anybody calls shutdown(2) on it, the last one takes its place and
// clients go astray. So a Group holds all its members until it is closed, also those of workers that
// died: connections in their queues are not lost, and wait for the next worker that accepts. Members
// are used again (Clean). And since any process of the same user may listen on the port, too, with a
// socket of its own, Repair counts the sockets of the group.
//
// One socket of the group is its anchor: no slot's clients come to it, and no process but this one has it. The
// program is attached to it, whatever workers do to theirs. Clients that ask for a slot which is not there, by its own
// address, come to it (Absent). At the end it gets all first packets, and answers none (StopHandshakes).
//
// Whatever a process that has a member may set on it stays, since the socket lives on. Repair undoes what
// keeps clients away or concerns others: shutdown(2), a small queue, filters, IP_MINTTL, another
// program. Clean undoes the rest before the next process gets it: O_NONBLOCK and O_ASYNC, buffers,
// timeouts, SO_LINGER, TCP_DEFER_ACCEPT and such. What cannot be undone spoils a member: a filter
// that was locked (SO_LOCK_FILTER). Two things are not seen: a key of TCP_MD5SIG or TCP-AO, which keeps
// the client of that address away; and a program that replaces ours, until the next Repair.
//
// File by file: group.go opens, steers and closes a Group of sockets, which socket.go makes. program.go is the
// classic program, which needs no right; ebpf.go is the same one in eBPF, which also counts, and counting.go loads it and has what it shares
// with the kernel. repair.go and settings.go undo what workers do. owner.go names processes that listen, and
// upgrade.go leaves a Group to another program (package reexec).
package reuseport
