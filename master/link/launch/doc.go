// Package launch does what has to be done in a worker's own process before its
// program runs there: things that a process can do only to itself, and that must not
// be done to the master.
//
// A worker's life begins as our own binary, which then becomes the command (execve), so
// that pid, process group and parent stay what they are:
//
//  1. The master opens a Control and starts Control.Command with Control.Files as
//     descriptors 3 and up (what supervisor.Link asks for).
//  2. In the child, Main sees that it is a launch. Activate: it puts the listeners that
//     the Control has sent at descriptors 3 and up, and LISTEN_PID into the environment.
//     BindSwap and AcceptInject: it installs a seccomp filter on its thread (package seccomp), and
//     sends the descriptor on which the filter's notifications arrive to the master.
//  3. It says hello, with its pid, or says why it cannot (Control.Hello).
//  4. It becomes the command. Nothing else is inherited: no descriptor, no signal that
//     is ignored or blocked, no limit of ours. Where that fails it says so on standard error
//     and exits with status 127 (no such command) or 126 (not executable), as shells do.
//
// control.go is the master's side, main.go the child's, and hello.go what the child says to the master.
// drain.go has a worker finish that knows nothing of handfast: Drain says how, a Drainer does it.
//
// A program that starts workers calls Main first thing, and so does the test binary of
// a package whose tests start some (TestMain).
package launch
