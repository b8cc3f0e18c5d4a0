// Package master accepts TCP connections and hands each to the worker that its
// client belongs to.
//
// One connection, file by file:
//
//  1. acceptor.go takes what a listener has, up to a batch.
//  2. identify.go finds out whom each is from (package clientip). Those of which too
//     little has arrived wait, a goroutine each, within --header-timeout.
//  3. place.go finds each client's slot and groups the batch by slot.
//  4. table.go says which worker is in a slot; the worker's link (package mailbox)
//     takes the group over in one message. Most connections are gone here.
//  5. park.go waits for those whose slot is empty or whose worker is behind: a
//     goroutine each, within --max-retries tries.
//  6. refuse.go answers those that waited in vain.
//
// Beside it: listen.go opens listeners, handshake.go says when their connections are
// accepted, package fdlimit keeps descriptors free, package supervisor starts and replaces
// workers, master.go wires all of it, status.go says what it is doing, and package admin lets
// others ask. upgrade.go leaves all of it to another program (package reexec).
//
// Steps 1 to 4 are the straight line: one goroutine per listener, and nothing is
// allocated or copied per connection.
//
// A Balancer does this over a Table, and whoever manages workers fills the table:
// the Master does it with package supervisor, a program of your own can do it
// with anything that implements Worker:
//
//	table := master.NewTable(4)
//	balancer, err := master.NewBalancer(master.DefaultBalancerConfig(), table)
//	table.Fill(0, worker)
//	err = balancer.Serve(ctx, listener)
package master
