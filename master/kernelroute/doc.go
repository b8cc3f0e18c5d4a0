// Package kernelroute is the kernel's route: each worker has a listener of its own, and the kernel
// gives it the clients of its slot (package reuseport). Nobody handles single connections, except
// where a worker does not accept.
//
// Each worker that lives has a berth: a listener on each address, which it shares with nobody. It has
// it on a lease, which ends with its process. A slot's clients come to the berth of the worker that
// fills the slot. So a worker that is replaced gets no connection any more from one moment to the
// next, without a word to it, and if its successor dies, it gets them again.
//
//   - route.go implements supervisor.Slots and repairs what workers do to their listeners.
//   - rule.go says when the master accepts from a listener.
//   - berth.go lends berths, and has the master accept where the rule says so.
//   - sharedacceptors.go accepts from listeners that workers share (package balancer does the accepting).
//   - waitclock.go knows since when clients wait whom nobody has accepted.
//   - closed.go notices workers that have closed their listeners.
//   - families.go listens on IPv4 alone, or where workers do.
//   - upgrade.go leaves all of it to another program (package reexec).
package kernelroute
