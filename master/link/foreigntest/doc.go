// Package foreigntest has what the tests of packages bindswap and acceptinject need: an Actor, a worker
// that does what the test says, and real Servers in all slots of a supervisor.
//
//	actor.go    Actor
//	servers.go  the servers, and the two ways to try them
//	stage.go    Stage: a supervisor with a server in each slot, and its clients
package foreigntest
