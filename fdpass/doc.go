// Package fdpass carries open connections from one process to another over a
// Unix socket. It is all that a handfast master and its workers must agree on.
// This page is the whole protocol: a worker in any language can be written from
// it (examples/python is one, in the standard library alone).
//
// # The mailbox
//
// The master makes a socketpair(AF_UNIX, SOCK_SEQPACKET, 0) for each worker
// process and starts the process with one end of it. The environment says what
// and where it is:
//
//	HANDFAST_FD          number of the inherited descriptor, e.g. 3
//	HANDFAST_SLOT        the worker's slot, 0 to HANDFAST_SLOTS-1
//	HANDFAST_SLOTS       number of slots when the worker was started
//	HANDFAST_GENERATION  which reload started the worker; the first is 1
//	WORKER_ID            the same as HANDFAST_SLOT
//	HANDFAST_ADDRESS     the first address that the master listens on, IP:PORT; not there if it listens
//	                     on Unix sockets alone
//	HANDFAST_SLOT_ADDRESS  a network, if slots have addresses of their own: connections to its address
//	                     number HANDFAST_SLOT, counted from 0, belong to this slot whoever the client is
//
// and whom to believe of what a request says of its client: HANDFAST_BEHIND_PROXY is
// true or false, and if it is true HANDFAST_PROXY_HEADER names the header,
// HANDFAST_TRUSTED_PROXIES lists the CIDR ranges of those who may write it, with
// commas, and HANDFAST_TRUSTED_HOPS is 0, or how many proxies' entries in that header
// count. HANDFAST_KEY is "address", which is meant if it is not there, or a list with commas such as
// "cookie:NAME,query:NAME": the first of these that a request has is what its client is recognised by, else its address.
// HANDFAST_IPV4_PREFIX and HANDFAST_IPV6_PREFIX are how many bits of an address tell
// clients apart, and HANDFAST_SEED is what package hash is seeded with.
//
// HANDFAST_SESSION lists, with commas, where requests have ids of sessions, if the master looks there. Then HANDFAST_ROUTE is a token that
// names this worker: 26 characters of a–z and 2–7. An id that ends in a dot and the token, or that is the token, takes its requests to this
// worker while it lives, also when it was replaced, and then to the worker that is in its slot. Nobody but the master can make a
// token. Keys and ids are found by the rules below (What a request says). If HANDFAST_NEW_SESSIONS is "anywhere", requests that have no token and none of the keys but the address belong to whatever worker
// they come to.
//
// SOCK_SEQPACKET keeps messages apart: each recvmsg(2) returns one message, with
// the descriptors that ride on it and no others. The descriptor is blocking and
// is inherited over exec(2): a worker makes it close-on-exec before it starts
// processes of its own, and removes HANDFAST_FD from their environment.
//
// HANDFAST_DRAIN_SPREAD and HANDFAST_DRAIN_TIMEOUT are numbers of seconds, if ends of workers that were replaced are spread: that of slot s of n
// has TIMEOUT - SPREAD*s/n to drain, and may close what is still open, one connection after the other, in the last SPREAD/n of that. Then it gets
// SIGTERM.
//
// # Messages
//
// Numbers are unsigned and in network byte order. A message is a header and as
// many records as the header says:
//
//	offset  size  header
//	     0     1  version of the protocol: 1
//	     1     1  type of the message
//	     2     2  number of records, 0 to 64
//	     4     2  size of one record in bytes, 24 in this version, or 28; at most 56
//	     6     2  number of bytes of details behind the records, at most 4096; zero
//	              for who has not said that they understand them
//
//	offset  size  record, one for each connection
//	     0     1  flags: 1 = the socket's peer is a trusted proxy whose PROXY
//	              protocol header the master has read: the address below is the
//	              client's, or the proxy's own when it said that it has no client;
//	              2 = nothing of a request had come when the master chose the
//	              worker, so the first one may be another slot's;
//	              4 = it is a Unix socket, whose peer has no address and is a
//	              trusted proxy; the address below is unknown unless flag 1 is set
//	     1     1  family of the client's address: 4, 6, or 0 when it is unknown
//	     2     2  port, 0 when it is unknown
//	     4    16  address: all 16 bytes for family 6, the first 4 for family 4
//	    20     4  scope of a link-local IPv6 address (interface index), else 0
//	    24     2  only if there are details: how many bytes are this connection's
//	    26     2  zero
//
// The details of each connection follow the records, in the same order: what else a
// PROXY protocol header said, its TLVs as they came, which may be malformed; none if
// they are more than 4096 bytes. A record is as long as what it has.
//
// The descriptors ride on the message in one SCM_RIGHTS control message, as many
// as there are records (but for report) and in the same order. No message is empty, since recvmsg
// cannot tell that from end of file. None is longer than
// 8 + 64*56 = 3592 bytes and its details, or carries more than 64 descriptors: a buffer
// of 8192 bytes, or 4096 without details, and a control buffer of CMSG_SPACE(64*sizeof(int)) hold any.
//
//	type  name     from    records
//	   1  handoff  master  connections that now belong to the worker
//	   2  ready    worker  none: the worker takes connections from now on
//	   3  leave    worker  none: the worker wants no more connections
//	   4  return   worker  connections that the worker gives back unused, with
//	                       the records that they came with
//	   5  listen   master  not connections but the slot's own listening sockets, with
//	                       the addresses that they listen on
//	   5  listen   worker  none: the worker accepts from these from now on, and takes
//	                       connections as after ready
//	   6  report   worker  one, without a descriptor: how many connections the worker has
//	                       open (offset 4, 8 bytes) and has accepted since its start
//	                       (offset 12, 8 bytes), by whatever route; how many
//	                       requests on them have named it (offset 20, 4 bytes); and how many
//	                       connections other workers have passed to it, which are not among
//	                       those that it has accepted (offset 0, 4 bytes)
//	   7  ping     master  none: does the worker take connections?
//	   8  pong     worker  none: the answer
//	   9  hand back worker connections between two requests, to be placed as if they had
//	                       just come, with the records that they came with; before ready
//	                       none: the worker does that
//	  10  slots    master  one, without a descriptor: how many slots there are now
//	                       (offset 4, 4 bytes), or 0: hand nothing back; and whether another
//	                       worker has taken the slot over (offset 8, 4 bytes, 1 or 0); the rest
//	                       is zero
//	  11  pass      master  ends of passages, by which workers pass connections to each other:
//	                       the port is the number of the slot whose worker's it is, the address is 0.0.0.0
//	  11  pass      worker  connections that other workers have passed to it and that it does
//	                       not take, with the records that they came with; before ready none:
//	                       the worker does all that
//	  11  pass      worker  to another worker, through a passage: connections between two requests, of which
//	                       the next belongs to its slot, with the records that they came with
//
// # What a worker can do
//
// Reports and pongs come from workers that can send them. The environment says what the
// master has a use for, and what comes before ready (or listen) what the worker can
// do; nothing that comes later changes that.
//
// A master wants reports if HANDFAST_REPORT is 1; one of an earlier version would take
// them for malformed. They are sent when the numbers have changed, at most once a
// second, also while the worker drains: they are what an administrator is shown.
//
// HANDFAST_MAX_CONNECTIONS_PER_SLOT, if it is there and not 0, is how many connections
// the worker may have open. A worker whose first report comes before ready is held to
// it: the master hands off at most so many that no report has accounted for as closed
// (accepted less open), and refuses further clients. So the worker counts each
// connection that it is sent, also one whose descriptor did not arrive (MSG_CTRUNC),
// which is accepted and closed; and it reports sooner: at once when an eighth of that
// number have closed since the last report, others within 10 ms. A report for which
// there is no room in the mailbox may be left out only if another one follows.
//
// A master that pings says so by HANDFAST_PING=1. A worker that has sent pong before
// ready is watched until it leaves or is to drain: if it leaves a ping unanswered for
// long it hangs, and may be killed. It answers where it takes connections, and not from a
// thread of its own, since that is the question. The master sends no other ping before
// the answer. A pong that answers none does no harm: a worker that cannot receive, for
// want of descriptors, sends one in case that a ping lies behind what it cannot take.
//
// # What a request says
//
// HANDFAST_KEY and HANDFAST_SESSION have entries of these forms; a text that is empty is none, and the next entry counts:
//
//	header:NAME    the value of the last header line of that name, without space around it; as a key only in a request from a
//	               trusted proxy
//	cookie:NAME    of the header lines Cookie, in their order, the first value of that name that is not empty; of two in one line
//	               only the first counts. Pairs are separated by ";", space around name and value is not theirs, nor are
//	               quotes around the whole value. Nothing is decoded
//	query:NAME     the first parameter of that name in the target's query, decoded as forms are (also +, which is a space; so is its name)
//	path:TEMPLATE  the segment in braces of the target's path, decoded; those before it are equal to the template's, or * there and
//	               not empty; what follows does not matter: for instance path:/echo/{room}
//	engine.io      query:sid, for HANDFAST_SESSION only
//
// The target is a path, or an absolute URI, and ends before "#". What is wrongly percent-encoded is not decoded. A key is the text as bytes,
// and its slot that of a text in package hash; without a key the client's address has it (package forwarded says what of
// HANDFAST_PROXY_HEADER that is). An id names a worker if what follows its last dot, or all of it, has the form of a token; the entries are asked in
// their order, and which is the first that the master knows only it can tell.
//
// # Connections that are handed back
//
// A proxy that pools its connections sends requests of several clients over one of them,
// of which the first alone has decided where it is. So a worker looks at the head of each
// further request before it reads it (MSG_PEEK), finds the client as the master does
// (packages forwarded and hash), and hands the connection back if that is another slot's: all
// requests that were read are answered, their bodies are read, and nothing of the next one has been. The master finds the
// client again and hands the connection to its slot. The worker closes its own descriptor, and the proxy notices
// nothing. A connection stays where it is if more than that has been read from it, or if it
// speaks anything else than HTTP/1 in the clear.
//
// A master that takes them says so by HANDFAST_HAND_BACK=1, and a worker that does it by
// hand back, empty, before ready. One that cannot read HANDFAST_PROXY_HEADER or HANDFAST_KEY as the master does
// (Forwarded has a grammar of its own), or knows nothing of HANDFAST_SESSION where that is there, does not say it. Such a worker:
//
//   - looks at connections whose record has a trusted proxy's address, which need not be the socket's peer (flag 1),
//     and at none if HANDFAST_BEHIND_PROXY is false; but at all of them if HANDFAST_SESSION is there, or a key of HANDFAST_KEY that is not
//     a header's value or the address;
//   - takes a request whose session's id has the worker's own token for its own, and if it has another one for another worker's; but
//     those that the first request has which the master hands off with the connection belong to who is no more: the worker remembers
//     them, thousands at most, until the next message slots, and such requests are its own as well;
//   - counts in its reports the further requests that name it, which the master does not see: while there are such, a worker that
//     was replaced is left as it is. One that reports 0 is told to drain when no connection has come for a while whose request names it;
//   - takes the head of a request for the master's word unless flag 2 says otherwise: it
//     looks at the second request and further ones, so that a connection cannot go to and
//     fro without being served, whatever master and worker think of its client;
//   - hands back what has come of a head that is not whole: the master waits for the rest,
//     within its limits;
//   - does not look at connections to slots' own addresses (getsockname is in HANDFAST_SLOT_ADDRESS), which belong where they are;
//   - hears by slots, which comes after ready and at each change, that their number is no longer HANDFAST_SLOTS, and whether it was
//     replaced: then only requests that name it are its own;
//   - at end of file, or having sent leave, hands back every connection that it looks at and that is between two requests,
//     whether something of the next one is there or not, unless the last slots said 0, as a master does that stops;
//   - understands details, in whatever message, and sends them back with the connection, in a record of 28 bytes.
//
// It hands back what it was handed, each connection once, its socket non-blocking as it came, and not shut down. In a report it counts
// as closed. Flag 2 means nothing in what is handed back. If the master is gone, or there is no room in the mailbox for long,
// the worker serves the request, and may close the connection afterwards.
//
// The master is not told which slot the worker thinks of. A connection that in its own view belongs to the
// worker that has handed it back waits for a retry delay.
//
// # Connections that workers pass to each other
//
// On a connection of a pool requests of the same slots follow each other again and again. So a worker that hands it back may keep what it
// has made of it, and go on when it comes back: it is the same socket if SO_COOKIE says so. Then it needs no
// look of the master's, and two processes more that are woken. Where the master need not know of each connection that a worker gets, it
// makes a passage for each worker of slots 0 to 63 that hands connections back and has sent pass, empty, before ready. It is a
// socketpair(AF_UNIX, SOCK_SEQPACKET, 0), for messages one way. Its exit is for the worker itself, its entrance for the workers of all other slots; each
// hears of the new ones by pass, in whatever number, and they are blocking. An entrance takes the place of the one of that slot before. A worker's exit
// stays the same as long as it lives; it closes further ones, and leaves if it has no room for it, since connections would wait there. One that has sent pass:
//
//   - passes a connection through the entrance of a slot if the next request belongs to that slot by its client, and not by its session's id,
//     and if it was not replaced and does not drain. It hands the connection back if that fails for whatever reason, such as that there
//     is no room or no entrance, or if the connection was passed to it and it has not served a request on it since. And it had better do so
//     if it has never waited for this connection before, since then that worker hardly does;
//   - takes from its exit no connection but those that it has itself handed back or passed on and waits for, by their cookies, if they come with
//     the record that it knows. It looks at the request then, whose place nobody but another worker has told;
//   - sends the master by pass all others that are sockets, also if it drains, and closes what is anything else. It is not to blame for any of these, whoever sent them. A
//     malformed message from the exit is ignored, but for its descriptors. None of what it closes may hold it up;
//   - closes the entrances of slots that are no more, by the message slots.
//
// When the worker is to drain, or has left, its passage ends, and it reads end of file from the exit behind what was passed before. What
// it does not receive the master takes out when it has ended, or after a second, as from its mailbox.
//
// # Later versions
//
// They make records longer and add types and flags; they do not change
// what is here. So a worker steps through the records by the size in the header,
// ignores flags that it does not know, and ignores messages of unknown types but
// closes the descriptors that they carry. A message of another version, or one
// whose length is not 8 + records*size + details, is an error: close what it carried.
//
// # A worker's life
//
//  1. Send report and pong, if they are wanted and the worker can, and then ready.
//     Until then the master gives the worker nothing, and if that
//     takes longer than the master's ready timeout the process is replaced.
//     When the kernel routes (--route kernel), the first message, there from the start,
//     is listen. A worker that accepts from those sockets answers with listen in place
//     of ready. The kernel gives each slot's sockets only that slot's clients. A worker
//     of the same slot may accept from them at the same time: they are non-blocking,
//     must stay so, and must never be shut down, only closed. For a worker that sends
//     ready instead the master accepts, and hands the connections off.
//  2. Receive. A handed-off connection is an ordinary connected TCP socket that
//     nobody has read from. It is non-blocking; the flag is the socket's own, so
//     a worker that wants it otherwise clears O_NONBLOCK.
//     TCP_NODELAY and keep-alive are set as on the master's listener. Ask for
//     MSG_CMSG_CLOEXEC so that it does not leak into child processes.
//  3. At end of file (recvmsg returns 0) the worker is to drain: either the
//     master is replacing or stopping it, or the master is gone. All that was
//     sent before is received first (and a worker that accepts for itself stops
//     that); but what the worker leaves lying for a second the master takes back,
//     for its successor. Finish the connections, then exit.
//  4. A worker that wants to stop by itself sends leave and then may give back,
//     by return, what it received and did not touch; so may a worker at end of
//     file, and no other. The master takes back what
//     is still in the mailbox, and end of file follows. Until then the worker
//     may go on receiving: each message reaches one of the two.
//     Closing or shutting down the mailbox does not say leave: the master has a
//     duplicate of it and would go on filling it.
//
// A handoff that lies in a mailbox is not lost when its worker dies: the master keeps a
// duplicate of the worker's end, takes the messages back, and gives the
// connections to the worker's successor. A worker therefore receives no more
// than it is about to serve. A worker whose process is at its limit of open
// files receives a message with MSG_CTRUNC and without the last of its
// descriptors, or without any: those connections are closed, and the kernel
// offers no way back. MSG_PEEK delivers descriptors too, so a worker that peeks
// first and receives only when all came loses none (package fdpass does near the
// limit).
//
// A worker should not be trusted to follow this page, so the master does not: a
// malformed message ends that worker's link, as if it had sent leave, and
// nothing else.
package fdpass
