// Package reexec replaces the program that runs in this process by another one, as a rule a later
// version of itself: its number, its children and the descriptors that it keeps stay (man 2
// execve).
//
// A Bundle takes along all that the next program must know: the state of each package that saves something, a Part with a
// version, as JSON, and the numbers of the descriptors that stay open. A part, a version, a field or a descriptor that the
// next program does not know is refused when it is tried. The next program is tried first: a
// child is given such a bundle and the same descriptors, does all that it would do up to
// where it begins to act, and says whether it could (DryRun). Only then is it run for
// good (Exec), and that returns only if it failed:
//
//	bundle := reexec.NewBundle(version)
//	bundle.Put(Part{"listener", 1}, map[string]int{"fd": bundle.Keep(fd)})
//	dryRun, err := bundle.DryRun(program) // with Lock held: the bundle is as things are
//	err = dryRun.Wait(ctx)
//	...                                        // likewise, with a new bundle
//	err = bundle.Exec(program)
//
// and in the next program, before it does anything else:
//
//	bundle, err := reexec.Inherited() // nil if it was started in the ordinary way
//	bundle.Get(Part{"listener", 1}, &state)
//	file, err := bundle.Take(state.FD, "listener")
//	err = bundle.Ready() // ends a dry run; fails if something was left that nobody has got or taken
//	bundle.Close() // the descriptors that nobody has taken
//
// File by file:
//
//	bundle.go      Bundle, its parts and descriptors; what is inherited
//	exec.go        DryRun, Exec and Ready
//	again.go       another try, where a program that takes another's place cannot begin
//	gate.go        Lock, which an upgrade closes; gate_race.go and gate_norace.go: whether misuse of it panics
//	signals.go     Notify: no signal is lost in between, as far as that is possible
//	recorder.go    a signal handler that needs no Go runtime (recorder_GOARCH.s; recorder_other.go: there is none)
//	sigaction.go   actions of signals, past package os/signal
//
// Package early asks for signals before all other packages, and package reexectest holds what is saved to golden files.
package reexec
