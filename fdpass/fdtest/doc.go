// Package fdtest has what tests of code that passes descriptors need: nothing leaks, something happens
// eventually, both ends of a TCP connection, a connection whose close would wait, and which system calls are ordinary ones.
//
// Its functions fail the test when they cannot do what they say. Call them from the test's goroutine.
package fdtest
