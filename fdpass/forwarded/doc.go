// Package forwarded says which client a proxy speaks for.
//
// A proxy in front of the master writes the client's address into a header of each
// request. The master needs it to place a connection, and a worker to see whether
// a request is from the client that its connection was placed for. So both ask
// here, with the same Rules, which the master tells its workers by environment.
//
// Whom to believe is trust.go. A header is a list of addresses, and each proxy adds
// at its right end whom it talked to: chain.go finds the client in it, and node.go
// reads one entry.
package forwarded
