// Package admin lets people and programs ask a running master what it is doing, and tell it
// what to do: an HTTP API on a Unix socket that only its user can open, and on TCP when that is
// asked for, a page for browsers, and the client of both. Routes has all that is answered.
//
// Reload, drain of a slot, and stop answer at once, and then with a line of JSON (Progress) for each step;
// the last one says how it ended. What is begun goes on when the client leaves. Errors are
// {"error": "why"} with a status of 400 or above.
//
// # Who may ask
//
// Everybody who may open the socket: its mode is 0600 from the moment that it exists, so that is the
// master's user, and root. On a TCP address it is everybody who can connect: nobody is asked who
// they are. Commands are taken on addresses of the machine itself only (127.0.0.1, ::1); others are for
// probes, Prometheus and the page. So a browser on this machine must not be made to do what a page of somebody else's
// wants: what changes something takes POST with Content-Type application/json, which no form can
// send and no script without being asked for permission (CORS), and requests to a host's name
// that nobody gave (DNS rebinding) are refused.
//
// Requests, connections and waiting are bounded. Nothing here is on the way of connections: a
// status is read from what the supervisor has published and from counters.
//
// # Where what happens
//
//	routes.go           what is answered
//	server.go           how, and which requests are refused
//	progress.go         answers that come step by step: reload, drain, stop
//	boundedlistener.go  how many connections there may be, and which goes when there are more
//	address.go          where the socket is by default, by name
//	listen.go           making it: its mode, a socket that a dead master has left, a socket in use
//	client.go           the other side, for handfast's own commands
//	page.html           the page; page.go gives it to browsers
package admin
