// Package fdtest has what tests of code that passes descriptors need: nothing leaks, something happens
// eventually, both ends of a TCP connection, a connection whose close would wait, which system calls are ordinary ones, and how
// old the kernel is.
//
// Its functions fail the test when they cannot do what they say. Call them from the test's goroutine.
//
//	leaks.go     NoLeaks
//	wait.go      Eventually and its like
//	tcp.go       connections
//	limit.go     a process that may open no more files
//	ordinary.go  OrdinaryCalls, from an execution trace
//	kernel.go    which kernel it is
//	log.go       Log
package fdtest
