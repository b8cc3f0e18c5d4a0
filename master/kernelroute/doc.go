// Package kernelroute is the kernel's route: each worker has a listener of its own, and the kernel
// gives it the clients of its slot (package reuseport). Nobody handles single connections, except
// where a worker does not accept.
//
// Each worker that lives has a berth: a listener on each address, which it shares with nobody. It has
// it on a lease, which ends with its process. A slot's clients come to the berth of the worker that
// fills the slot. So a worker that is replaced gets no connection any more from one moment to the
// next, without a word to it, and if its successor dies, it gets them again.
//
//   - route.go implements supervisor.Slots: which slot's clients come to which berth.
//   - berth.go keeps berths fit for the next worker, lease.go gives them to workers.
//   - rule.go says when the master accepts from a listener, and accept.go has it do so:
//     sharedacceptors.go runs the loops, package balancer does the accepting, and waitclock.go knows
//     how long clients have waited that nobody has accepted.
//   - repair.go puts right what workers do to their listeners, and names others who listen there.
//   - closed.go notices workers that have closed their listeners.
//   - families.go listens on IPv4 alone, or where workers do.
//   - serve.go does the rest while the master runs, and lets nobody down at its end.
//   - upgrade.go leaves all of it to another program (package reexec).
package kernelroute
