// Package reexec replaces the program that runs in this process by another one, as a rule a later
// version of itself: its number, its children and the descriptors that it keeps stay (man 2
// execve).
//
// What the next program must know travels in a Bundle: the state of who saves something, as
// JSON, and the numbers of the descriptors that stay open. The next program is tried first: a
// child is given such a bundle and the same descriptors, does all that it would do up to
// where it begins to act, and says whether it could (Rehearse). Only then is it run for
// good (Exec), and that returns only if it failed:
//
//	bundle := reexec.NewBundle(version)
//	bundle.Put("listener", map[string]int{"fd": bundle.Keep(fd)})
//	rehearsal, err := bundle.Rehearse(program) // with Lock held: the bundle is as things are
//	err = rehearsal.Wait(ctx)
//	...                                        // likewise, with a new bundle
//	err = bundle.Exec(program)
//
// and in the next program, before it does anything else:
//
//	bundle, err := reexec.Inherited() // nil if it was started in the ordinary way
//	bundle.Get("listener", &state)
//	file, err := bundle.Take(state.FD, "listener")
//	bundle.Ready() // ends a rehearsal
//	bundle.Close() // the descriptors that nobody has taken
package reexec
