// Package programs is what we know of other people's programs: what a worker's command comes to
// when its wrappers are looked through, whether what listens in the end is Node and is reached by
// Node's channel, which programs take an inherited listener, which serve a slot with several
// processes, and what their last words mean.
//
// Everything here is a question about a command and the files that it names. Nothing is started
// and nothing is changed; what the master does with an answer is the master's.
//
//	command.go   a Command: what a worker's command comes to, and of which Kind that is
//	wrapper.go   wrappers such as env and nice; shell.go: sh -c and scripts of a shell
//	node.go      Node's own options, and starters such as npm
//	server.go    servers that are known by name, and how they run one process
//	inherit.go   how a program finds a listener that it inherits
//	finish.go    the signal on which a program finishes
//	words.go     last words: an address in use, and others whose cause is known
package programs
