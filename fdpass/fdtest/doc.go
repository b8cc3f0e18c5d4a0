// Package fdtest has what tests of code that passes descriptors need: nothing leaks, something happens
// eventually, both ends of a TCP connection, a connection whose close would wait, and which system calls are ordinary ones.
//
// Its functions fail the test when they cannot do what they say. Call them from the test's goroutine.
//
//	leaks.go     NoLeaks
//	wait.go      Eventually and its like
//	tcp.go       connections
//	limit.go     a process that may open no more files
//	ordinary.go  OrdinaryCalls, from an execution trace
//	log.go       Log
package fdtest
