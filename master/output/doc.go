// Package output reads what workers print, and writes it on with the worker's slot.
//
//  1. Collector.NewOutput makes the files that a worker gets as standard output and error: the far end of a
//     terminal of its own (man 4 pts), so that programs go on writing line by line and in colours, or of pipes.
//  2. One goroutine for each reads lines. It holds at most one line, and no more than maxLine of that, so a
//     worker that prints faster than the log is read waits in write(2), as it would without us; nothing else waits.
//  3. The lines go to a Sink, as text behind a prefix or as JSON, and the last ones are kept (words).
//
// All that a process has written before it ended is read, however soon it ended. Its children may hold the files for
// longer; when the worker's own processes have ended, they are read for another ten seconds.
//
// Bytes that were read and not yet written on, and the descriptors, go to the program that takes the place
// of this one (package reexec). Nothing is lost then; a line that is being written in that very moment may come twice.
//
//	collector.go  Collector and its Config: the forms of lines, and where they go
//	output.go     Output: the two files of one worker
//	stream.go     one of them: reading lines, and passing them on
//	terminal.go   terminals, and what is one
//	words.go      the last lines of a worker
package output
