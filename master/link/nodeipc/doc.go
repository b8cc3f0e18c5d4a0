// Package nodeipc is the link between the master and a Node worker that knows nothing
// of handfast: it speaks the channel by which Node's own cluster module talks to its
// workers. A program that calls server.listen() believes that it has a primary, and
// that is the master.
//
// The channel is a Unix stream socket, which a worker finds by NODE_CHANNEL_FD. A
// message is one line of JSON; a descriptor rides on the message that speaks of it
// (lib/internal/child_process.js of Node; the same from Node 14 to 24).
//
// One connection:
//
//  1. link.go queues it, and sends it while fewer than a window's worth are under
//     way, each in a message of its own (channel.go).
//  2. The worker acknowledges (ack.go), and only then the master closes its copy. A connection that a
//     worker refuses, or has not acknowledged when it ends, is placed again: the worker has not
//     touched it. The master reads many such messages at once (yield.go).
//
// Which messages a worker gets depends on what it is (offer.go): a server that listens gets what
// a cluster worker gets (servers.go), a worker written for sticky-listen, @socket.io/sticky or
// sticky-session gets the message that those wait for. Its package.json tells the last ones
// apart (project.go).
//
// cluster.go answers what a worker asks its primary: queryServer, listening, close,
// exitedAfterDisconnect. Listening on the balancer's port means to take the slot's
// connections; anything else is a socket that all workers share (primary.go).
//
// A small module does what the program, which knows nothing of handfast, does not (preload.cjs). Node loads it before the program
// (module.go). Where requests of several clients or sessions may follow each other on a connection, as in a proxy's pool, it hands
// the connection back when a request is answered (handback.go). And it has the sessions of Engine.IO name their worker, if
// HANDFAST_SESSION has the word engine.io.
//
// relay.go passes the messages of @socket.io/cluster-adapter from worker to worker. Messages for which there
// is no room in a channel wait in outbox.go, within limits, and by turns with connections.
//
// Beside it: message.go has the words of the channel, sending.go and receiving.go one system call each way.
// session.go says which worker keeps which session, open.go opens what a worker wants to listen on, and knows
// a Unix socket's name, finish.go drains a worker, upgrade.go leaves all of it to another program (package reexec).
package nodeipc
