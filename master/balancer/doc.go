// Package balancer is the master's route: it accepts TCP connections and hands each to the
// worker that its client belongs to.
//
// One connection, file by file:
//
//  1. acceptor.go takes what a listener has, up to a batch; shared.go does so where workers
//     accept from the same listener.
//  2. identify.go finds each connection's client (package clientip). Those of which too
//     little has arrived wait, a goroutine each, within --header-timeout.
//  3. router.go finds each client's slot and groups the batch by slot.
//  4. table.go says which worker is in a slot; the worker's link (package mailbox)
//     takes the group over in one message. Most connections are gone here.
//  5. park.go waits for those whose slot is empty or whose worker is behind: a
//     goroutine each, within --max-retries tries.
//  6. refuse.go answers those that waited in vain.
//
// Beside it:
//
//	balancer.go   Config, its limits, and the Balancer: Serve, Readmit, Shutdown
//	conn.go       a connection that the master has and no worker yet
//	worker.go     Worker and its like: what a table's slots are filled with
//	strategy.go   where clients belong: Strategy, and ByKey, the one that hashes
//	waitlist.go   the room for those that wait, and the quotas of a slot and of a client
//	handback.go   places connections that workers hand back between two requests; idle.go keeps
//	              those that have nothing of the next one yet, and watch.go tells when that comes
//	sessions.go   the worker that keeps a session
//	listen.go     opens listeners; handshake.go: when their connections are accepted
//	ledger.go     counts what happens to connections, and reports it; outcome.go: as what
//	advice.go     warns of clients who are not told apart, or are believed like proxies
//	errors.go     why connections are refused, and the words for that
//	upgrade.go    leaves all of it to another program (package reexec)
//
// Steps 1 to 4 are the straight line: one goroutine per listener, and nothing is
// allocated or copied per connection.
//
// A Balancer does this over a Table, and the manager of workers fills the table:
// package master does it with package supervisor, a program of your own can do it
// with anything that implements Worker:
//
//	table := balancer.NewTable(4)
//	b, err := balancer.New(balancer.DefaultConfig(), table)
//	table.Fill(0, worker)
//	err = b.Serve(ctx, listener)
package balancer
