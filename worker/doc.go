// Package worker lets a Go server serve connections that a handfast master hands
// to it. To an existing server it is one changed line:
//
//	ln, err := worker.Listen(":8080") // was: net.Listen("tcp", ":8080")
//
// and for an http.Server, with graceful draining, it is
//
//	err := worker.Serve(&http.Server{Addr: ":8080", Handler: handler})
//
// Started by handfast, the listener's Accept returns handed-off connections and
// the address is not used; started alone, the same program listens on the address.
//
// When the master replaces or stops the worker, and also when the master dies,
// the worker drains: Accept returns what was handed off before and then
// net.ErrClosed. The process should finish its connections (Listener.Wait) and
// exit. Serve does all of that.
//
// File by file:
//
//	listener.go        Listener: Listen, Accept, Wait, Close
//	source.go          where its connections come from: the mailbox; slotlisteners.go: or the slot's own listeners
//	conn.go            Conn, a connection that was handed off; zerocopy.go: what the kernel moves for it
//	handback.go        connections that are handed back; look.go: whose next request is where; away.go: until they come back
//	passage.go         or passed from worker to worker
//	tlv.go             what else a proxy said of it (PROXY protocol, version 2)
//	serve.go           Serve, and its drain; traffic.go: which requests are under way
//	clients.go         a request's client, and connections of one client behind a proxy (KeepClientsApart)
//	report.go          tells the master how many connections are open
//	place.go           the slot and generation of this process
package worker
