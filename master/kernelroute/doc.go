// Package kernelroute is the kernel's route: each worker has a listener of its own, and the kernel
// gives it the clients of its slot (package reuseport). The master handles single connections only
// where a worker does not accept.
//
// Each worker that lives has a berth: a listener on each address, which it shares with nobody. It has
// the berth on a lease, which ends with its process. A slot's clients come to the berth of the worker
// that fills the slot. So a worker that is replaced gets no more connections from one moment to the
// next, without being told, and if its successor dies, it gets them again.
//
// The promises:
//
//  1. A slot's clients come to one berth. They move to another one in one step, and the connections that
//     wait in a berth stay there (Route.Fill, Empty, Resize).
//  2. A worker shares a berth only if it takes the place of one that has left, or if no other listener can be
//     opened; then it takes over what waits there, too. Any other berth is empty, has cooled down, and is as
//     new when a worker gets it (Route.choose).
//  3. The master accepts where no worker will, at once, and where a worker is expected, after a while. It
//     hands off what it accepts, or refuses it if workers take listeners only (rule).
//  4. What a worker does to its listeners harms no other slot for longer than until the next look (repair).
//  5. At the end every connection is accepted or refused, and no other gets in (Serve, Close).
//  6. Clients that ask for a slot which is not there, by its own address, are reset at once (updateAcceptors).
//  7. Another program goes on where this one was (Save, Restore).
//
// File by file:
//
//   - route.go implements supervisor.Slots: which slot's clients come to which berth.
//   - berth.go keeps berths fit for the next worker, lease.go gives them to workers.
//   - rule.go says when the master accepts from a listener, and accept.go makes it do so:
//     sharedacceptors.go runs the loops, package balancer does the accepting, and waitclock.go knows
//     how long clients have waited that nobody has accepted.
//   - repair.go puts right what workers do to their listeners, and names other processes that listen there.
//   - closed.go notices workers that have closed their listeners, and queues.go those that take nothing from them.
//   - families.go listens on IPv4 alone, or where workers do.
//   - serve.go looks after the listeners while the master runs, and after their connections at its end.
//   - group.go says what a Route needs of listeners, balancers and the machine.
//   - census.go counts the connections that slots' clients have open.
//   - came.go says how many have come, where the kernel counts.
//   - upgrade.go leaves all of it to another program (package reexec).
package kernelroute
