// Package fdtest has what tests of code that passes descriptors need: nothing leaks, something happens
// eventually, both ends of a TCP connection, and a connection whose close would wait.
//
// Its functions fail the test when they cannot do what they say. Call them from the test's goroutine.
package fdtest
