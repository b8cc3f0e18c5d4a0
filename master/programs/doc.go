// Package programs is what we know of other people's programs: what a worker's command comes to
// when its wrappers are looked through, whether what listens in the end is Node and is reached by
// Node's channel, which programs take an inherited listener, which serve a slot with several
// processes, and what their last words mean.
//
// Everything here is a question about a command and the files that it names. Nothing is started
// and nothing is changed; what the master does with an answer is the master's.
package programs
