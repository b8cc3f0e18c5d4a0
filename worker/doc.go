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
package worker
