// Package probe asks a worker whether it can take clients, beyond what its link says: a server
// that listens may still have something to load, and one that has served may not be able to any more.
//
//	3s                              it has listened for so long
//	tcp:127.0.0.1:900{slot}         it accepts a connection there
//	http://127.0.0.1:900{slot}/up   it answers there with a status of 200 to 399
//
// The address must be one where this worker alone answers, so {slot} and {generation} in it
// stand for the worker's. During a reload the old worker of a slot is there with the new one. On
// the balancer's own address the worker of any slot may answer.
package probe
