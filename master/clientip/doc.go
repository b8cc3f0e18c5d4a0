// Package clientip finds out which client a connection is from.
//
//  1. The peer's address, if nobody stands between.
//
//  2. proxyproto.go: a trusted proxy may have to say it in front of the connection
//     (PROXY protocol). That header is read, to its last byte and no further; or it is
//     only peeked, if workers read it themselves.
//
//  3. if the address found so far is a trusted proxy's, the head of the HTTP
//     request may say it (package forwarded, head.go). It is peeked (MSG_PEEK) and stays
//     where it is, so that the worker reads it and the same can be asked again. It may also bring what else the client is
//     recognised by.
//
//  4. names.go: the id of its session may say which worker has made it, by a token that nobody else can make.
//
//  5. session.go: where workers say which sessions they keep, the request line may name
//     one of them. Whose session it is does not depend on its client's address.
//
// finder.go takes these steps with what has arrived, without waiting; wait.go is
// for connections of which too little has. A connection that does not begin with an
// HTTP/1 request belongs to the address found until then.
package clientip
