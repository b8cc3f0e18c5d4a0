// Package foreigntest has what the tests of packages bindswap and acceptinject need: an Actor, a worker
// that does what the test says, and real Servers in all slots of a supervisor.
package foreigntest
