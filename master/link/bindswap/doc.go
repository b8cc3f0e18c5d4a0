// Package bindswap gives workers that know nothing of handfast the slot's listening socket: any
// program that binds the balancer's port itself gets it in place of its own, and
// accepts from it as it would have from its own. Nothing is done per connection.
//
//  1. Package foreign starts the worker under a filter that asks about bind, listen and shutdown
//     (seccomp.Bind), and waits for its hello.
//  2. link.go waits for notifications: the calling thread stands still until its call is answered.
//  3. handle.go decides. A TCP socket that is bound to the balancer's address becomes a
//     descriptor of the slot's listener (listener.go), and the call succeeds.
//     Calls that such a descriptor has no use for any more, listen and shutdown, succeed without
//     an effect. Everything else goes on to the kernel as if nobody had looked.
//  4. Ready is closed when a process of the worker waits for connections on all listeners
//     of the slot (package listening).
//  5. upgrade.go keeps the worker when the master's program is replaced.
//  6. check.go tries whether this machine can do all that.
//
// The master may end: no filter asks about accept. A bind fails from then on (ENOSYS).
//
// # What is the balancer's
//
// A bind for which the kernel would say EADDRINUSE, were it not for SO_REUSEPORT: the same
// port, and the same address, or one of both is a wildcard. A wildcard of IPv6 covers IPv4. The
// slot may have several listeners; a socket becomes the one that fits best:
// the same address, else the same family.
//
// # What a program must not rely on
//
// All processes of a worker share one socket for each listener, and what they set on it, they
// set for all: options, and O_NONBLOCK. That one is switched on for a server whose own socket
// had it, and never off: an event loop that finds that another process was faster must not
// stand still in accept. The listener that a worker is given is as new (reuseport.Group.Clean), except where a
// worker before it has not ended.
//
// Nothing here keeps a hostile program from the port: it runs as the master's user, and the arguments
// of a call that goes on to the kernel may be changed after we have looked (seccomp_unotify(2), NOTES).
package bindswap
