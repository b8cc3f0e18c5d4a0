// Package master is a balancer whose slots a supervisor fills with worker processes: one route,
// one kind of link, and a supervisor.
//
// The route finds a client's slot. It is the master's (package balancer: accept, identify, place,
// deliver) or the kernel's (package kernelroute: each worker has a listener of its own). The link is
// how a worker gets what it serves (the packages in link). The supervisor (package supervisor) starts,
// drains and replaces workers, and knows neither.
//
// config.go says what a Master needs. links.go has a row for each kind of link: what its workers take and can do, and how a worker's link is made. route.go
// has the two routes behind one interface. master.go wires all of it. status.go says what they are doing, and package admin lets others ask.
// upgrade.go leaves all of it to another program (package reexec). access.go writes the access log.
// finish.go says how workers that know nothing of handfast are made to finish. Workers' mistakes
// are noticed and explained by elsewhere.go (they listen on another address), several.go (several
// processes serve one slot) and advice.go (they fail, or are not ready, for a reason that is known).
package master
