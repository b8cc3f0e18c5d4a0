// Package forwarded says which client a request is from, and which worker it names.
//
// A proxy in front of the master writes the client's address into a header of each
// request, and perhaps what else the client is to be recognised by; or the client brings that itself, in a cookie or in the
// target; and the id of a session may name the worker that has made it. The master needs
// it to place a connection, and a worker to see whether a request belongs to it. So both ask here, with the same Rules, which
// the master tells its workers by environment:
//
//  1. head.go reads the head of a request from bytes. Package http may have done that.
//  2. request.go collects what its lines say of the client and of its session, and decides.
//  3. key.go has a row for each kind of key, other than the address, and of place for a session's id; value.go finds
//     what they look for, and token.go the name of a worker at the end of an id.
//  4. Whom to believe is trust.go. A header is a list of addresses, and each proxy adds
//     at its right end whom it talked to: chain.go finds the client in it, by whom to
//     believe, hops.go by the number of proxies, and node.go reads one entry.
//
// rules.go has the Rules themselves, with the header's name and whose word counts.
package forwarded
