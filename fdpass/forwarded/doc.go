// Package forwarded says which client a proxy speaks for.
//
// A proxy in front of the master writes the client's address into a header of each
// request, and perhaps what else the client is to be recognised by. The master needs
// it to place a connection, and a worker to see whether a request is from the client
// that its connection was placed for. So both ask here, with the same Rules, which
// the master tells its workers by environment:
//
//  1. head.go reads the head of a request from bytes. Package http may have done that.
//  2. request.go collects what its lines say of the client, and decides.
//  3. key.go has a row for each kind of key, other than the address, that may be there.
//  4. Whom to believe is trust.go. A header is a list of addresses, and each proxy adds
//     at its right end whom it talked to: chain.go finds the client in it, by whom to
//     believe, hops.go by the number of proxies, and node.go reads one entry.
//
// rules.go has the Rules themselves, with the header's name and whose word counts.
package forwarded
