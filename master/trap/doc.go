// Package trap connects workers that know nothing of us: any program that binds the
// balancer's port itself. It is given the slot's listening socket in place of its own, and
// accepts from that as it would have from its own. Nothing is done per connection.
//
//  1. The worker is started through package launch, which installs a seccomp filter in its
//     process and sends us the descriptor of the filter's notifications (seccomp(2),
//     seccomp_unotify(2)). Filter and descriptor are its descendants', too.
//  2. link.go waits for notifications: the caller stands still in bind, listen or shutdown
//     until we answer.
//  3. judge.go decides. A TCP socket that is bound to the balancer's address becomes a
//     descriptor of the slot's listener (SECCOMP_IOCTL_NOTIF_ADDFD), and the call succeeds.
//     What such a descriptor has no use for any more, listen and shutdown, succeeds without
//     an effect. Everything else goes on to the kernel as if nobody had looked.
//  4. Ready is closed when a process of the worker waits for connections on all listeners
//     of the slot (package polled).
//
// The master may end: accept is not asked about. A bind fails then (ENOSYS).
//
// # What is the balancer's
//
// A bind for which the kernel would say EADDRINUSE, were it not for SO_REUSEPORT: the same
// port, and the same address or one of both a wildcard. A wildcard of IPv6 covers IPv4. The
// slot may have several listeners; a descriptor can be one only, that which fits best:
// the same address, else the same family.
//
// # What a program must not rely on
//
// All processes that have a slot's listener share one socket, and what they set on it, they
// set for all: options, and O_NONBLOCK. That one is switched on for a server whose own socket
// had it, and never off: an event loop that finds that another process was faster must not
// stand still in accept. So where workers of several kinds have filled a slot one after
// the other, one with a blocking accept may see EAGAIN.
//
// Nothing here keeps a hostile program from the port: it runs as the master's user, and what
// the kernel goes on with may be changed after we have looked (seccomp_unotify(2), NOTES).
package trap
