// Package acceptinject hands connections, one by one, to workers that know nothing of handfast: any
// program that binds the balancer's port itself. The master routes, since it finds clients by headers,
// say; each call of accept is answered with a connection.
//
//  1. Package foreign starts the worker under a filter that asks about bind, listen, accept, accept4
//     and shutdown (seccomp.BindAccept), and waits for its hello.
//  2. link.go waits for notifications: the calling thread stands still until its call is answered.
//     handle finds out which call it is.
//  3. bind.go: a TCP socket that is bound to the balancer's address becomes a decoy (decoy.go): a
//     listening socket on a loopback address of its own, to which no client comes.
//  4. Deliver queues connections, up to a limit.
//  5. accept.go: when a process calls accept on a decoy, the peer's address is written into its
//     memory, and the oldest connection is added to its descriptors
//     (SECCOMP_IOCTL_NOTIF_ADDFD), whose number is the answer. If there is none, a non-blocking
//     socket gets EAGAIN, and on a blocking one the call waits for its answer.
//  6. A thread that waits in a poller is woken by a connection of our own to the decoy, a wake-up (decoy.go). It stays while
//     connections are queued, and where a server accepts until there are no more until that call.
//  7. housekeep.go does what no call asks for. It answers calls that wait when connections come. Threads that wait in
//     accept cannot be interrupted, so it looks whether they have signals to handle, and answers with what the
//     kernel would; it wakes others if nobody accepts; and it notices that all decoys are closed.
//  8. check.go tries whether this machine can do all that.
//
// Until a call has been answered the connection is the master's. What is queued when the worker drains
// or dies is returned to the balancer (Config.Readmit). A master that stops first waits until nothing is queued.
//
// When the master ends, accept fails (ENOSYS): such a worker serves the connections that it has, and no
// others. So these workers are not kept in an upgrade.
//
// # What differs from a listening socket
//
//   - Its own address (getsockname) is a private one. Connections tell the right one.
//   - Connections do not inherit options that the server sets on it; SO_RCVTIMEO does not bound
//     accept.
//   - A poller may announce a connection once more than there are on a non-blocking socket, where accept has failed (EAGAIN)
//     without an announcement before.
//   - Of several threads of which the kernel would wake one for each connection (EPOLLEXCLUSIVE) one is woken for the first,
//     and others up to 100 ms later if that one does not go on accepting.
//   - A thread that waits in accept handles signals up to 100 ms late. SIGSTOP does not stop it there,
//     and it takes one connection, which is lost if the process is then killed.
//   - On a blocking socket accept fails with ECONNABORTED when the connection that a poller has announced
//     was returned to the balancer, or when a stranger has connected to the private address.
package acceptinject
