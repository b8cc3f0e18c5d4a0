// Package bindswap connects workers that know nothing of us: any program that binds the
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
//     of the slot (package listening).
//
// The master may end: accept is not asked about. A bind fails then (ENOSYS). For an Injector
// it is otherwise, see below.
//
// # Accept injection
//
// Where the master routes, since clients are named by headers, there are no listeners for
// slots, and connections are handed to the worker one by one (Injector). This is experimental.
//
//  1. The filter asks about accept and accept4, too (launch.Inject).
//  2. injector.go: a TCP socket that is bound to the balancer's address becomes a door (door.go): a
//     listening socket on a loopback address of its own, to which no client comes.
//  3. Deliver queues connections, up to a limit.
//  4. accept.go: when a process calls accept on a door, the peer's address is written into its
//     memory, and the oldest connection is added to its descriptors
//     (SECCOMP_IOCTL_NOTIF_ADDFD), whose number is the answer. Is there none, a non-blocking
//     socket gets EAGAIN, and on a blocking one the call waits for its answer.
//  5. Who waits in a poller is woken by a knock: for each queued connection we connect to a
//     door, so that its backlog mirrors the queue, and take that back when a connection was
//     accepted.
//  6. tend.go does what nobody asks for: threads that wait in accept cannot be interrupted, so
//     it looks whether they have signals to handle, and answers with what the kernel would; it
//     knocks at other doors if nobody comes; and it notices that all are closed.
//
// Until a call has been answered the connection is ours. What is queued when the worker drains
// or dies is given back.
//
// When the master ends, accept fails (ENOSYS): such a worker serves those it has, and no others.
// What else differs from a listening socket:
//
//   - Its own address (getsockname) is a private one. Connections tell the right one.
//   - Connections do not inherit options that the server sets on it; SO_RCVTIMEO does not bound
//     accept.
//   - A thread that waits in accept handles signals up to 100 ms late. SIGSTOP does not stop it there,
//     and it takes one connection, which is lost if the process is then killed.
//   - On a blocking socket accept fails with ECONNABORTED when what a poller has announced was given
//     back, or when a stranger has connected to the private address.
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
// All processes of a worker share one socket for each listener, and what they set on it, they
// set for all: options, and O_NONBLOCK. That one is switched on for a server whose own socket
// had it, and never off: an event loop that finds that another process was faster must not
// stand still in accept. The listener that a worker is given is as new (reuseport.Group.Clean), except where a
// worker before it has not ended.
//
// Nothing here keeps a hostile program from the port: it runs as the master's user, and what
// the kernel goes on with may be changed after we have looked (seccomp_unotify(2), NOTES).
package bindswap
