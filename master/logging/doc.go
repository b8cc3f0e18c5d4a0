// Package logging writes lines without making their writers wait, and not more of them than
// somebody can read: a log must never hold up the events that it records.
//
//   - Queue is between a program and the file, pipe or terminal that its log goes to. It takes what it
//     has room for, counts what it leaves out, and tells that when it can write again.
//   - Limit bounds how often a logger writes the same message.
//
// Three things can happen to the file. A reader of a pipe stops reading: then write(2) waits, and the
// queue's goroutine with it. A disk is full, or the reader of a pipe has gone: then it fails, and is tried
// again each second. Nobody has opened a FIFO for reading yet: that is a failure, too (man 7 fifo).
//
//	queue.go     Queue: its goroutine, what waits, and what is left out
//	file.go      Open: the file behind it, and opening it again
//	limit.go     Limit, and Few: the rate of what others can cause
//	packages.go  errors and lines without the names of packages
package logging
