// Package seccomp asks the master about system calls of workers, and gives its answers: user
// notifications of seccomp (seccomp(2), seccomp_unotify(2)). It knows nothing of listeners and slots;
// packages bindswap and acceptinject decide.
//
//  1. filter.go: a process installs a Filter on itself before it becomes the worker's program. All
//     descendants have it, too. The kernel returns the descriptor of the filter's notifications,
//     which the process sends to the master (package launch).
//  2. notify.go: Notifications receives, one after the other, calls that wait for an answer, and
//     answers them: with a value, an error, a new descriptor, or by letting the kernel go on.
//  3. caller.go: Caller looks, in /proc and in its memory, at what the calling thread has passed to
//     the kernel. sockaddr.go reads an address among that.
//  4. epoll.go: ReplaceSocket puts another socket in the place of the caller's, also for the epoll
//     instances that knew it.
//
// A thread may be killed while it waits, and its number given to another. So ask StillValid after
// looking at a Caller, and before believing it.
package seccomp
